/* Consoles.
 *
 *   POST /v1/vms/{id}/console             a ticket, kept in the leader's memory
 *   GET  /v1/vms/{id}/console?ticket=...  WebSocket: leader -> https://<host's address>/v1/vms/<id>/console with the
 *                                         controller's certificate; the agent accepts controllers only
 * A client with a user's certificate needs no ticket. */
#include "controller/api/api_console.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>


/* Id of the VM in the path and, unless NULL, id and address of its host. */
static int find_vm(struct api_call *call, char vm_id[STATE_ID_BYTES], char host_id[STATE_ID_BYTES], char *address,
                   size_t address_size, struct error *err)
{
    const struct state *state = call->service->state;
    int r = 0;
    service_lock_state(call->service);
    const struct record *vm = state_get(state, object_kind_VM, call->id), *host = NULL;
    if (vm == NULL) {
        r = error_set(err, -ENOENT, ERROR_NOT_FOUND, "there is no vm '%s'", call->id);
    } else {
        snprintf(vm_id, STATE_ID_BYTES, "%s", vm->common->id);
        host = state_get(state, object_kind_HOST, vm->vm->host);
        if (address != NULL && (host == NULL || host->host->address == NULL))
            r = error_set(err, -EINVAL, ERROR_CONFLICT, "vm '%s' is on no host, so it has no console; start it",
                          call->id);
        else if (address != NULL)
            snprintf(address, address_size, "%s", host->host->address);
        if (host_id != NULL && host != NULL)
            snprintf(host_id, STATE_ID_BYTES, "%s", host->common->id);
    }
    service_unlock_state(call->service);
    return r;
}

void api_console_ticket(struct api_call *call)
{
    struct api *api = &call->service->api;
    struct console_ticket ticket = {.head = {0}};
    struct bytes_writer body = {0};
    struct error err;
    char vm_id[STATE_ID_BYTES], path[256], expires[ENVIRONMENT_TIME_SIZE];
    if (find_vm(call, vm_id, NULL, NULL, 0, &err) < 0) {
        api_call_error(call, &err);
        return;
    }
    const char *text = console_ticket_issue(&api->tickets, vm_id, environment_monotonic_ms());
    snprintf(path, sizeof path, "/v1/vms/%s/console?ticket=%s", vm_id, text);
    environment_time_text(environment_unix_ms() + CONSOLE_TICKET_TTL_MS, expires);
    OBJECT_TEXT(console_ticket, &ticket, ticket, text);
    OBJECT_TEXT(console_ticket, &ticket, path, path);
    OBJECT_TEXT(console_ticket, &ticket, expires_at, expires);
    OBJECT_ENCODE(console_ticket, &ticket, &body);
    OBJECT_CLEAR(console_ticket, &ticket);
    api_call_answer_json(call, 201, "Cache-Control: no-store\r\n", &body);
}

void api_console(struct api_call *call)
{
    struct service *service = call->service;
    struct error err;
    char vm_id[STATE_ID_BYTES] = "", host_id[STATE_ID_BYTES] = "", address[256], path[96];
    int r = find_vm(call, vm_id, NULL, NULL, 0, &err);
    if (call->caller.role != ROUTE_USER &&
        (r < 0 || !console_ticket_take(&service->api.tickets, call->query.ticket, vm_id, environment_monotonic_ms())))
        r = error_set_field(
            &err, -EACCES, ERROR_UNAUTHENTICATED, "?ticket",
            "this ticket is not good (any more): it serves one VM, once, within %u s; ask for another with "
            "POST on this path",
            CONSOLE_TICKET_TTL_MS / 1000);
    if (r == 0)
        r = find_vm(call, vm_id, host_id, address, sizeof address, &err);
    if (r < 0) {
        api_call_error(call, &err);
        return;
    }
    snprintf(path, sizeof path, "/v1/vms/%s/console", vm_id);
    api_call_pass_to_host(call, host_id, address, path, 0);
}
