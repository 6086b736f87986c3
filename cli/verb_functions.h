/* The functions behind the verbs that are not plain requests. Each returns 0 or a negative errno with @err in words
 * and prints its result on standard output. */
#ifndef CLI_VERB_FUNCTIONS_H
#define CLI_VERB_FUNCTIONS_H

#include "cli/invocation.h"

int cluster_init(const struct invocation *call, struct error *err);   /* cluster_verb.c */
int cluster_status(const struct invocation *call, struct error *err);
int host_drain(const struct invocation *call, struct error *err);     /* host_verb.c */
int host_loss(const struct invocation *call, struct error *err);
int vm_placement(const struct invocation *call, struct error *err);   /* vm_verb.c */
int vm_add_nic(const struct invocation *call, struct error *err);     /* device_verb.c */
int vm_remove_nic(const struct invocation *call, struct error *err);
int vm_limit(const struct invocation *call, struct error *err);
int image_create(const struct invocation *call, struct error *err);   /* image_create.c */
int image_download(const struct invocation *call, struct error *err); /* image_verb.c */
int image_distribute(const struct invocation *call, struct error *err);
int backup_store_create(const struct invocation *call, struct error *err); /* backup_store_verb.c */
int backup_store_attach(const struct invocation *call, struct error *err);
int backup_store_delete(const struct invocation *call, struct error *err);
int backup_verify(const struct invocation *call, struct error *err);  /* backup_verb.c */
int backup_prune(const struct invocation *call, struct error *err);
int token_create(const struct invocation *call, struct error *err);   /* token_verb.c */
int vm_console(const struct invocation *call, struct error *err);     /* console_attach.c */
int event_list(const struct invocation *call, struct error *err);     /* event_verb.c */
int event_follow(const struct invocation *call, struct error *err);
int operation_wait_verb(const struct invocation *call, struct error *err); /* operation_wait.c */
int drill_list(const struct invocation *call, struct error *err);     /* drill_verb.c */
int drill_run_verb(const struct invocation *call, struct error *err);
int drill_report(const struct invocation *call, struct error *err);
int context_list(const struct invocation *call, struct error *err);   /* context.c */
int context_add(const struct invocation *call, struct error *err);
int context_use(const struct invocation *call, struct error *err);
int context_remove(const struct invocation *call, struct error *err);
int completion_bash(const struct invocation *call, struct error *err); /* completion.c */
int completion_zsh(const struct invocation *call, struct error *err);
int completion_fish(const struct invocation *call, struct error *err);
/* `drover __complete WORDS...`: candidates, one a line. Never an error: silence instead. */
void complete_words(int argc, char **argv);

/* The verbs that are one request (request_verb.c). */
int request_verb(const struct invocation *call, struct error *err);
/* Ask "%s [y/N]" on the terminal. Without one, -EPERM: say --yes. */
int confirm(const struct invocation *call, const char *question, const char *name, struct error *err);

#endif
