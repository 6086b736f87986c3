/* drover: the command line of the cluster. One more REST client; every verb works from anywhere. */
#include <errno.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "cli/output.h"
#include "cli/verb_functions.h"
#include "common/log.h"

static void print_error(const struct error *err)
{
    char words[sizeof err->field + sizeof err->text + 4];
    fprintf(stderr, "drover: %s\n", error_words(err, words, sizeof words));
}

int main(int argc, char **argv)
{
    struct invocation call;
    struct error err = {0};
    setlocale(LC_CTYPE, "");
    signal(SIGPIPE, SIG_IGN);
    log_set_level(LOG_LEVEL_ERROR);
    if (argc > 1 && strcmp(argv[1], "__complete") == 0) {
        complete_words(argc - 2, argv + 2);
        return 0;
    }
    if (argc > 1 && strcmp(argv[1], "--version") == 0) {
        puts("drover 0.1");
        return 0;
    }
    int rc = invocation_parse(argc - 1, argv + 1, &call, &err);
    if (rc == 0 && call.verb != NULL)
        rc = call.verb->run ? call.verb->run(&call, &err) : request_verb(&call, &err);
    if (rc < 0)
        print_error(&err);
    int status = rc < 0 ? error_kind_info(err.kind)->exit_status : 0;
    rc = output_end(&err);
    if (rc == 0 || rc == -EPIPE)
        return status;
    print_error(&err);
    return status != 0 ? status : error_kind_info(err.kind)->exit_status;
}
