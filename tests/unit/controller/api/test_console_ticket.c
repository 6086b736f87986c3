/* Console tickets: one use, one VM, thirty seconds, a bounded number. */
/* clang-format off */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
/* clang-format on */
#include <stdio.h>
#include <string.h>

#include "controller/api/console_ticket.h"

#define VM_A "0f8fad5b-d9cb-469f-a165-70867728950e"
#define VM_B "1f8fad5b-d9cb-469f-a165-70867728950e"

static void issue(struct console_tickets *tickets, const char *vm, uint64_t now, char out[ENVIRONMENT_SECRET_SIZE])
{
    snprintf(out, ENVIRONMENT_SECRET_SIZE, "%s", console_ticket_issue(tickets, vm, now));
}

static void test_once(void **unused)
{
    (void)unused;
    struct console_tickets tickets = {.count = 0};
    char ticket[ENVIRONMENT_SECRET_SIZE];
    issue(&tickets, VM_A, 1000, ticket);
    assert_int_equal(strlen(ticket), 64);
    assert_false(console_ticket_take(&tickets, "", VM_A, 1000));
    assert_false(console_ticket_take(&tickets, "x", VM_A, 1000));
    assert_true(console_ticket_take(&tickets, ticket, VM_A, 1001));
    assert_false(console_ticket_take(&tickets, ticket, VM_A, 1001));
    console_tickets_finish(&tickets);
}

static void test_other_vm_uses_it_up(void **unused)
{
    (void)unused;
    struct console_tickets tickets = {.count = 0};
    char ticket[ENVIRONMENT_SECRET_SIZE];
    issue(&tickets, VM_A, 1000, ticket);
    assert_false(console_ticket_take(&tickets, ticket, VM_B, 1000));
    assert_false(console_ticket_take(&tickets, ticket, VM_A, 1000));
    console_tickets_finish(&tickets);
}

static void test_expiry(void **unused)
{
    (void)unused;
    struct console_tickets tickets = {.count = 0};
    char early[ENVIRONMENT_SECRET_SIZE], late[ENVIRONMENT_SECRET_SIZE];
    issue(&tickets, VM_A, 1000, early);
    issue(&tickets, VM_A, 1001, late);
    assert_false(console_ticket_take(&tickets, early, VM_A, 1000 + CONSOLE_TICKET_TTL_MS));
    assert_true(console_ticket_take(&tickets, late, VM_A, 1000 + CONSOLE_TICKET_TTL_MS));
    assert_int_equal(tickets.count, 0);
    console_tickets_finish(&tickets);
}

static void test_bound(void **unused)
{
    (void)unused;
    struct console_tickets tickets = {.count = 0};
    char first[ENVIRONMENT_SECRET_SIZE], last[ENVIRONMENT_SECRET_SIZE];
    issue(&tickets, VM_A, 0, first);
    for (unsigned i = 0; i < CONSOLE_TICKETS_MAX; i++)
        issue(&tickets, VM_A, 1, last);
    assert_int_equal(tickets.count, CONSOLE_TICKETS_MAX);
    assert_false(console_ticket_take(&tickets, first, VM_A, 2));
    assert_true(console_ticket_take(&tickets, last, VM_A, 2));
    console_tickets_finish(&tickets);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_once),
        cmocka_unit_test(test_other_vm_uses_it_up),
        cmocka_unit_test(test_expiry),
        cmocka_unit_test(test_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
