/* Consoles: one-time tickets, and the WebSocket, which is piped to the agent of the VM's host. */
#ifndef CONTROLLER_API_API_CONSOLE_H
#define CONTROLLER_API_API_CONSOLE_H

#include "controller/api/api_call.h"

void api_console_ticket(struct api_call *call);
void api_console(struct api_call *call);

#endif
