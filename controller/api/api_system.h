/* /healthz, /readyz, /metrics and the OpenAPI document. Answered by whichever controller is asked. */
#ifndef CONTROLLER_API_API_SYSTEM_H
#define CONTROLLER_API_API_SYSTEM_H

#include "controller/api/api_call.h"

#define API_METRICS_GOOD_MS 5000u

void api_healthz(struct api_call *call);
void api_readyz(struct api_call *call);
/* Prometheus text (docs/monitoring.md). What is of all VMs and backups of a large cluster is up to API_METRICS_GOOD_MS old. */
void api_metrics_show(struct api_call *call);
void api_openapi(struct api_call *call);

#endif
