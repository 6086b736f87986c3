/* GET /v1/events: the replicated ring of events as Server-Sent Events, or as a JSON array for Accept:
 * application/json.
 *
 *   id: 42                          index; ?after=42 or Last-Event-ID: 42 goes on after it
 *   event: updated                  struct event's type
 *   data: {"index":42,...}          struct event
 *
 * Events of one index come together and only the last one carries the id: a reader that resumes misses none of them.
 * Where the ring no longer holds what was asked for: 410 resync; within a stream an event `resync`, and the stream
 * ends. */
#ifndef CONTROLLER_API_API_WATCH_H
#define CONTROLLER_API_API_WATCH_H

#include "controller/api/api_call.h"

#define API_WATCH_QUEUE_BYTES 262144u /* unsent to one reader; beyond, it gets no more until it has read */
#define API_WATCH_BLOCK_BYTES 65536u  /* copied under one hold of the state's lock */
#define API_WATCH_TURN 128u           /* readers given something in one turn of the loop */
#define API_WATCH_ID_EVERY 1000u      /* events passed over by a filter before the reader is told the position */

void api_watch(struct api_call *call);
void api_watch_start(struct api *api);
void api_watch_applied(struct api *api);
void api_watch_stop(struct api *api); /* ends all streams */

#endif
