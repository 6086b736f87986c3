/* drover-backup: makes, lists, restores, verifies and prunes backups in a store, without a cluster. The agent starts
 * it for each job; a person may use it by hand. What it says and how it ends is stable: see the help below. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

#include "backup/tool.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MAY_BE_TRACED 1 /* sanitizers look at their process */
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MAY_BE_TRACED 1
#endif
#endif
#ifndef MAY_BE_TRACED
#define MAY_BE_TRACED 0
#endif

enum { TEXT, NUMBER, COUNT, BYTES, FLAG, PAIR, NAME, WORD };

struct option_row {
    const char *name, *value, *help;
    int kind;
    size_t offset;
    const char *verbs; /* first letters of those that take it; "*" all */
};
#define AT(member) offsetof(struct tool_options, member)

/* i init, c create, l list, s show, r restore, m mount, n serve, v verify, p prune, a cat, k key */
static const struct option_row rows[] = {
    {"store", "STORE", "where the backups are: an absolute path, or s3://BUCKET[/PREFIX]?endpoint=URL&region=NAME",
     TEXT, AT(store), "*"},
    {"key-file", "FILE", "a key of an encrypted store; init --encrypt writes the working key there", TEXT,
     AT(key_file), "*"},
    {"credentials", "FILE", "the access key and the secret key for S3, a line each, instead of those of the environment", TEXT,
     AT(credentials), "*"},
    {"repository", "ID", "only if the store is this one (32 hex digits); else nothing is done", TEXT, AT(repository), "clsrmnvpak"},
    {"host", "NAME", "what this host is called in words about that", TEXT, AT(host), "clsrmnvpak"},
    {"limit", "BYTES", "transfer at most so many bytes a second (K, M, G: times 1024)", BYTES, AT(limit), "crvpamn"},
    {"threads", "N", "threads that compute (default: one for each processor)", NUMBER, AT(threads), "crv"},
    {"progress-fd", "N", "write progress there, a JSON object on each line", WORD, AT(progress_fd), "crvpln"},
    {"encrypt", NULL, "encrypt what is stored; prints the recovery key once", FLAG, AT(encrypt), "i"},
    {"chunk-bytes", "BYTES", "size of chunks, a power of two from 64K to 1M (default: 128K)", BYTES, AT(chunk_bytes),
     "i"},
    {"vm", "NAME", "name of the VM", TEXT, AT(vm), "crsavpmn"},
    {"vm-id", "UUID", "its id", TEXT, AT(vm_id), "crsavpmn"},
    {"disk", "NAME=WHERE",
     "a disk; create: file:/PATH, pool:/DIRECTORY/DISK[@SNAPSHOT], nbd:unix:/SOCKET[:EXPORT[@MARK]] "
     "or nbd:fd:N[:...]; restore: file:/PATH or fd:N; "
     "cat, mount, serve: NAME",
     PAIR, AT(disks), "cramn"},
    {"changed", "NAME=FILE", "since --parent only this has changed on the disk: lines \"OFFSET LENGTH\"", PAIR,
     AT(changed), "c"},
    {"id", "UUID", "the backup's id; if it is there and complete, that is fine", TEXT, AT(id), "c"},
    {"parent", "ID", "the backup to be incremental to, or none (default: the VM's newest)", TEXT, AT(parent), "c"},
    {"definition", "FILE", "JSON that is kept with the backup: the VM and its networks", TEXT, AT(definition), "c"},
    {"consistency", "WORD", "how far the guest took part: crash, filesystem, memory", TEXT, AT(consistency), "c"},
    {"created-at", "TIME", "the moment that the disks show (default: now)", TEXT, AT(created_at), "c"},
    {"label", "KEY=VALUE", "a word of your own, often", PAIR, AT(labels), "c"},
    {"transfers", "N", "how many objects are sent at once", NUMBER, AT(transfers), "c"},
    {"level", "N", "of compression, 1 to 19 (default: 3)", NUMBER, AT(level), "c"},
    {"json", NULL, "answer in JSON", FLAG, AT(json), "clvp"},
    {"backup", "ID", "which backup, or latest with --vm", TEXT, AT(backup), "rsavmn"},
    {"page-bytes", "BYTES", "a line of JSON for each backup, with its VM's definition, by id; no more after so much", BYTES,
     AT(page_bytes), "l"},
    {"after", "ID", "with --page-bytes: only ids that are greater", TEXT, AT(after), "l"},
    {"only-definition", NULL, "show the VM's definition alone", FLAG, AT(only_definition), "s"},
    {"force", NULL, "write over targets that are there; a file is as long as the disk then", FLAG, AT(force), "r"},
    {"offset", "BYTES", "begin there", BYTES, AT(offset), "a"},
    {"length", "BYTES", "and stop after so much", BYTES, AT(length), "a"},
    {"at", "DIRECTORY", "where its disks and their partitions are to show up as files", TEXT, AT(at), "m"},
    {"socket", "PATH", "the Unix socket that is made; or fd:N: one that listens already", TEXT, AT(socket), "n"},
    {"each", NULL, "say how each backup stands, a line of JSON, and at the end that all were looked at", FLAG, AT(each), "v"},
    {"quick", NULL, "compare the stored bytes only, do not decompress them", FLAG, AT(quick), "v"},
    {"keep-last", "N", "keep the newest N backups of each VM", COUNT, AT(keep_last), "p"},
    {"keep-hourly", "N", "and the newest of each of the last N hours that have one", COUNT, AT(keep_hourly), "p"},
    {"keep-daily", "N", "days", COUNT, AT(keep_daily), "p"},
    {"keep-weekly", "N", "ISO weeks", COUNT, AT(keep_weekly), "p"},
    {"keep-monthly", "N", "months", COUNT, AT(keep_monthly), "p"},
    {"keep-yearly", "N", "years; time is UTC; without any keep rule no backup goes", COUNT, AT(keep_yearly), "p"},
    {"forget", "ID", "this backup goes, often", NAME, AT(forgotten), "p"},
    {"forget-list", "FILE", "these backups go, an id on each line", TEXT, AT(forget_list), "p"},
    {"missing-ok", NULL, "those that are to go and are not there have gone", FLAG, AT(missing_ok), "p"},
    {"no-collect", NULL, "leave the space for a later prune", FLAG, AT(no_collect), "p"},
    {"grace", "SECONDS", "packs younger than that are never removed (default: 86400)", TEXT, AT(grace), "p"},
    {"dry-run", NULL, "say what would go", FLAG, AT(dry_run), "vp"},
    {"add", "FILE", "make a further key, into this file", TEXT, AT(add_key_file), "k"},
    {"name", "NAME", "its name in the store", TEXT, AT(key_name), "k"},
    {"remove", "NAME", "take a key away", TEXT, AT(remove_key), "k"},
};

struct verb_row {
    const char *name, *summary;
    char letter;
    int (*run)(const struct tool_options *, struct error *);
};
static const struct verb_row verbs[] = {
    {"init", "make a store", 'i', tool_init},
    {"create", "make a backup of a VM's disks; incremental where the source can tell what has changed", 'c',
     tool_create},
    {"list", "show the complete backups of a store", 'l', tool_list},
    {"show", "show one backup", 's', tool_show},
    {"restore", "write disks of a backup to files", 'r', tool_restore},
    {"cat", "write a disk of a backup, or a part of it, to standard output", 'a', tool_cat},
    {"mount", "show the disks of a backup and their partitions as files, read-only, until it is ended (root)", 'm', tool_mount},
    {"serve", "show the disks of a backup by NBD at a Unix socket, read-only, until it is ended", 'n', tool_serve},
    {"verify", "read all that is stored, or what one backup needs, and name what is damaged and whom it hurts", 'v', tool_verify},
    {"prune", "remove backups by rules, and what no backup needs any more", 'p', tool_prune},
    {"key", "list, add and remove the keys of an encrypted store", 'k', tool_key},
};

static atomic_bool cancelled;

static void on_signal(int number UNUSED)
{
    atomic_store(&cancelled, true);
}

static bool takes(const struct verb_row *verb, const struct option_row *row)
{
    return row->verbs[0] == '*' || strchr(row->verbs, verb->letter) != NULL;
}

static void help_verb(const struct verb_row *verb)
{
    printf("drover-backup %s - %s\n\nOptions:\n", verb->name, verb->summary);
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        char left[64];
        if (!takes(verb, &rows[i]))
            continue;
        snprintf(left, sizeof left, "--%s%s%s", rows[i].name, rows[i].value != NULL ? " " : "",
                 rows[i].value != NULL ? rows[i].value : "");
        printf("  %-24s  %s\n", left, rows[i].help);
    }
}

static void help(void)
{
    printf(
        "drover-backup - backups of VMs in a directory or on S3\n\nusage: drover-backup VERB [options]\n\nVerbs:\n");
    for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
        printf("  %-8s  %s\n", verbs[i].name, verbs[i].summary);
    printf(
        "\n`drover-backup VERB --help` tells its options.\n\n"
        "Credentials for S3 come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or --credentials.\n\n"
        "Exit status: 0 done; 1 damage was found, no space, or an internal error; 2 bad usage; 3 wrong key or\n"
        "credentials; 4 no such thing; 5 it is there already or in use; 9 the store cannot be reached;\n"
        "10 made by a newer version; 11 cancelled (SIGTERM, SIGINT).\n\n"
        "Progress (--progress-fd): {\"step\",\"disk\",\"done_bytes\",\"total_bytes\",\"read_bytes\",\"new_bytes\",\n"
        "\"stored_bytes\"}; the last line is {\"step\":\"done\",\"result\":{...}} or "
        "{\"step\":\"failed\",\"code\",\"text\"}. "
        "Once the store is open: {\"repository\":ID}.\n");
}

static int number_parse(const char *text, bool unit, uint64_t *ret, struct error *err)
{
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10), factor = 1;
    const char *at = unit && *end != '\0' ? strchr("KMGT", *end) : NULL;
    if (at != NULL) {
        factor = *end == 'K' ? 1u << 10 : *end == 'M' ? 1u << 20 : *end == 'G' ? 1u << 30 : UINT64_C(1) << 40;
        end++;
    }
    if (errno != 0 || text[0] < '0' || text[0] > '9' || *end != '\0' || __builtin_mul_overflow(value, factor, ret))
        return error_set(err, -EINVAL, ERROR_INVALID, "'%.64s' is no number%s", text,
                         unit ? " of bytes (K, M, G, T may follow)" : "");
    return 0;
}

static int pair_add(struct tool_pairs *pairs, const char *option, char *text, bool value_needed, struct error *err)
{
    char *equals = strchr(text, '=');
    if ((equals == NULL && value_needed) || text == equals || text[0] == '\0')
        return error_set(err, -EINVAL, ERROR_INVALID, "--%s takes NAME=VALUE, not '%.64s'", option, text);
    if (pairs->count == TOOL_LISTS_MAX)
        return error_set(err, -E2BIG, ERROR_INVALID, "--%s may be given %d times", option, TOOL_LISTS_MAX);
    if (equals != NULL)
        *equals = '\0';
    pairs->items[pairs->count].name = text;
    pairs->items[pairs->count++].value = equals != NULL ? equals + 1 : "";
    return 0;
}

static int option_take(const struct verb_row *verb, const struct option_row *row, char *text, struct tool_options *o,
                       struct error *err)
{
    void *member = (char *)o + row->offset;
    uint64_t number = 0;
    int code = 0;
    if (row->kind == NUMBER || row->kind == BYTES || row->kind == COUNT || row->kind == WORD)
        code = number_parse(text, row->kind == BYTES, &number, err);
    if (code == 0 && (row->kind == NUMBER || row->kind == WORD) && number > INT32_MAX)
        code = error_set(err, -EINVAL, ERROR_INVALID, "it is too large");
    if (code < 0) {
        error_prefix(err, "--%s: ", row->name);
        return code;
    }
    o->has_length = o->has_length || row->offset == AT(length);
    switch (row->kind) {
    case TEXT:
        *(const char **)member = text;
        return 0;
    case FLAG:
        *(bool *)member = true;
        return 0;
    case NUMBER:
        *(unsigned *)member = (unsigned)number;
        return 0;
    case WORD:
        *(int *)member = (int)number;
        return 0;
    case BYTES:
    case COUNT:
        *(uint64_t *)member = number;
        return 0;
    default:
        return pair_add(member, row->name, text, row->kind == PAIR && strchr("amn", verb->letter) == NULL, err);
    }
}

static int parse(const struct verb_row *verb, int argc, char **argv, struct tool_options *o, struct error *err)
{
    struct option longs[ARRAY_SIZE(rows) + 1] = {{0}};
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
        longs[i] =
            (struct option){rows[i].name, rows[i].kind == FLAG ? no_argument : required_argument, NULL, (int)i + 256};
    opterr = 0;
    for (;;) {
        int c = getopt_long(argc, argv, ":", longs, NULL);
        if (c < 0)
            break;
        if (c < 256 || !takes(verb, &rows[c - 256]))
            return error_set(err, -EINVAL, ERROR_INVALID,
                             c == ':' ? "%.64s needs a value"
                                      : "%.64s is no option here; `drover-backup VERB --help` tells which are",
                             argv[optind - 1]);
        int code = option_take(verb, &rows[c - 256], optarg, o, err);
        if (code < 0)
            return code;
    }
    if (optind < argc)
        return error_set(err, -EINVAL, ERROR_INVALID, "'%.64s' is one word too many", argv[optind]);
    return 0;
}

int main(int argc, char **argv)
{
    struct tool_options o = {.progress_fd = -1, .cancel = &cancelled};
    struct error err = {0};
    const struct verb_row *verb = NULL;
    struct sigaction act = {.sa_handler = on_signal};
    prctl(PR_SET_DUMPABLE, MAY_BE_TRACED, 0, 0, 0); /* keys are in its memory: no core, no other process of the user looks */
    for (size_t i = 0; argc > 1 && i < ARRAY_SIZE(verbs); i++)
        if (strcmp(argv[1], verbs[i].name) == 0)
            verb = &verbs[i];
    if (verb == NULL) {
        bool asked = argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0);
        if (asked)
            help();
        else
            fprintf(stderr, "drover-backup: a verb is needed; `drover-backup --help` tells which there are\n");
        return asked ? 0 : 2;
    }
    for (int i = 2; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0) {
            help_verb(verb);
            return 0;
        }
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGINT, &act, NULL);
    signal(SIGPIPE, SIG_IGN);
    int code = parse(verb, argc - 1, argv + 1, &o, &err);
    if (code == 0)
        code = verb->run(&o, &err);
    if (code < 0) {
        char words[800];
        fprintf(stderr, "drover-backup: %s\n", error_words(&err, words, sizeof words));
        return error_kind_info(err.kind)->exit_status;
    }
    return 0;
}
