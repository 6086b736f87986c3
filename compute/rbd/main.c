/* drover-rbd: images of a Ceph cluster for those who may not talk to a network. `serve` is an NBD server of one image at a Unix
 * socket; a VMM has its disks by it. `fill` makes an image of a raw file. The other verbs make, enlarge, remove and look at images, and at
 * their pool.
 *
 *   --while-connected   the image's lock is taken when a client comes and let go of when it has gone: so whoever has closed its
 *            connection, and seen its end, has given the image away, and the next one, of any host, takes it. Where the lock cannot be
 *            taken, or has been lost, the server ends with the reason: its connection to Ceph may be one that is kept out for good
 *   fill     under the image's lock and FILL_EPOCH, which is below that of any VM: one that is attached to one is not touched. What an
 *            earlier run of the same content has left is written over; that all is there is written down with the image (--origin),
 *            and then there is nothing to do. Another one that lives and is at it keeps us out; one that has died does so for half a minute
 *   signals  SIGTERM, SIGINT: what was written is flushed, the image's lock is let go, exit 0; fill: exit 1; or, where Ceph does not
 *            answer within FILL_END_S, SIGALRM, and the lock is a dead one's
 *   output   serve: "ready" in a line when it can be connected to; size: bytes; status: which pool it is, its size and what is free
 *            of it in bytes; fill: as a task's child does (compute/agent/task_child.h)
 *   exit     0; 1 with the reason on stderr; 2: wrong options */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "block/block_fill.h"
#include "block/block_rbd.h"
#include "block/nbd_server.h"
#include "common/file.h"
#include "schema/objects.h"

enum { KEY_BYTES_MAX = 256, USER_MAX = 0x7fffffff, FILL_EPOCH = 1, FILL_END_S = 3 };

struct words {
    const char *verb, *conf, *user, *key_file, *pool, *image, *socket, *from, *origin;
    uint64_t size_bytes, epoch, run_as;
    bool read_only, replaces, while_connected;
};

static const char help[] =
    "drover-rbd - serve images of a Ceph cluster by NBD at a Unix socket\n"
    "\n"
    "Usage: drover-rbd VERB --pool POOL --image NAME [--option value]...\n"
    "\n"
    "  serve      serve the image by NBD at a Unix socket, until SIGTERM\n"
    "               drover-rbd serve --pool vms --image v1 --socket /run/v1.nbd --epoch 7\n"
    "  create     make an image of zeroes; one of that size that is there already is fine\n"
    "               drover-rbd create --pool vms --image v1 --size 10737418240\n"
    "  size       print the size of an image in bytes\n"
    "  grow       enlarge an image, also one that is in use; one that is as large already is fine\n"
    "               drover-rbd grow --pool vms --image v1 --size 21474836480\n"
    "  fill       make an image of a raw file: holes stay holes; one that has been filled with that is fine\n"
    "               drover-rbd fill --pool vms --image v1 --size 10737418240 --from disk.raw --origin debian-13\n"
    "  remove     remove an image; one that is not there is fine\n"
    "  status     print which pool it is, its size and how much of it is free, in bytes\n"
    "               drover-rbd status --pool vms\n"
    "\n"
    "  --conf FILE        of the Ceph cluster (/etc/ceph/ceph.conf)\n"
    "  --user NAME        of the Ceph cluster, without \"client.\" (admin)\n"
    "  --key-file FILE    the user's key, alone in a file (where not given: in the keyring that the conf tells of)\n"
    "  --pool POOL        of the Ceph cluster\n"
    "  --image NAME       in that pool\n"
    "  --size BYTES       create, grow, fill: a multiple of 512\n"
    "  --from FILE        fill: the raw file\n"
    "  --origin WORD      fill: what that is, at most 64 characters, written down with the image when all of it is there\n"
    "  --socket FILE      serve: made here, mode 0600, and removed at the end\n"
    "  --epoch N          serve: of the image's owner; whoever has it with a lower one loses it for good\n"
    "  --replace          serve: so does one of the same epoch, which is known to be dead\n"
    "  --while-connected  serve: the image is taken when a client connects, and let go of when it has gone; one client at a time\n"
    "  --run-as UID       serve: as this user, once Ceph is connected to; the socket is this user's\n"
    "  --read-only        serve: nobody is kept out, and nothing is written\n"
    "  -h, --help         this help\n";

static int number_parse(const char *text, uint64_t *ret_number)
{
    char *end;
    errno = 0;
    *ret_number = strtoull(text, &end, 10);
    return errno == 0 && *end == '\0' && *text >= '0' && *text <= '9' ? 0 : -EINVAL;
}

static int wrong(const char *what)
{
    fprintf(stderr, "drover-rbd: %s; `drover-rbd --help` tells more\n", what);
    return 2;
}

/* Both: 0; else the exit status + 1. */
static int words_check(const struct words *w)
{
    bool fills = strcmp(w->verb, "fill") == 0;
    if (w->pool == NULL || (w->image == NULL && strcmp(w->verb, "status") != 0))
        return 1 + wrong("--pool and --image are needed");
    if ((strcmp(w->verb, "create") == 0 || strcmp(w->verb, "grow") == 0 || fills) && w->size_bytes == 0)
        return 1 + wrong("create, grow and fill need --size");
    if (fills && (w->from == NULL || w->origin == NULL || w->origin[0] == '\0' || strlen(w->origin) >= RBD_ORIGIN_BYTES))
        return 1 + wrong("fill needs --from, and --origin of at most 64 characters");
    if (strcmp(w->verb, "serve") == 0 && w->socket == NULL)
        return 1 + wrong("serve needs --socket");
    if (strcmp(w->verb, "serve") == 0 && w->epoch == 0 && !w->read_only)
        return 1 + wrong("serve needs --epoch, 1 or more, or --read-only");
    if (w->read_only && w->while_connected)
        return 1 + wrong("--while-connected is about the image's lock, and --read-only takes none");
    return 0;
}

static int words_parse(int argc, char **argv, struct words *w)
{
    static const struct option options[] = {
        {"conf", required_argument, NULL, 'c'},   {"user", required_argument, NULL, 'u'},  {"key-file", required_argument, NULL, 'k'},
        {"pool", required_argument, NULL, 'p'},   {"image", required_argument, NULL, 'i'}, {"size", required_argument, NULL, 's'},
        {"socket", required_argument, NULL, 'S'}, {"epoch", required_argument, NULL, 'e'}, {"replace", no_argument, NULL, 'R'},
        {"read-only", no_argument, NULL, 'r'},    {"help", no_argument, NULL, 'h'},        {"while-connected", no_argument, NULL, 'w'},
        {"run-as", required_argument, NULL, 'U'}, {"from", required_argument, NULL, 'f'},  {"origin", required_argument, NULL, 'o'},
        {NULL, 0, NULL, 0},
    };
    for (int option; (option = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        switch (option) {
        case 'c': w->conf = optarg; break;
        case 'u': w->user = optarg; break;
        case 'k': w->key_file = optarg; break;
        case 'p': w->pool = optarg; break;
        case 'i': w->image = optarg; break;
        case 'S': w->socket = optarg; break;
        case 'f': w->from = optarg; break;
        case 'o': w->origin = optarg; break;
        case 'R': w->replaces = true; break;
        case 'r': w->read_only = true; break;
        case 'w': w->while_connected = true; break;
        case 'U':
            if (number_parse(optarg, &w->run_as) < 0 || w->run_as == 0 || w->run_as > USER_MAX)
                return 1 + wrong("--run-as takes the number of a user other than root");
            break;
        case 's':
            if (number_parse(optarg, &w->size_bytes) < 0 || w->size_bytes == 0 || w->size_bytes % BLOCK_SECTOR_BYTES != 0)
                return 1 + wrong("--size takes a number of bytes, a multiple of 512");
            break;
        case 'e':
            if (number_parse(optarg, &w->epoch) < 0)
                return 1 + wrong("--epoch takes a number");
            break;
        case 'h': fputs(help, stdout); return 1;
        default: return 1 + wrong("wrong option");
        }
    }
    w->verb = optind < argc ? argv[optind] : NULL;
    if (w->verb == NULL || optind + 1 != argc)
        return 1 + wrong("one verb is needed: serve, create, size, grow, fill, remove, or status");
    return words_check(w);
}

static struct nbd_server *volatile served; /* for the signal handler; NULL: it is over, or has not begun */

static void on_signal(int number UNUSED)
{
    struct nbd_server *server = served;
    if (server != NULL)
        nbd_server_stop(server);
}

static void serve_run(void *arg)
{
    block_rbd_run(arg);
}

/* On librbd's threads, of requests, which there are only while there is a server. */
static void serve_wake(void *arg)
{
    struct nbd_server **server = arg;
    nbd_server_wake(*server);
}

/* Of requests that were not answered the client tells whoever serves the image next: this guest is to see no error. */
static void serve_lost(void)
{
    static const char words[] = "drover-rbd: Ceph keeps this client out: another one has the image, or its lock was broken\n";
    ssize_t n UNUSED = write(STDERR_FILENO, words, sizeof words - 1);
    _exit(1);
}

/* With --while-connected: the first failure is what the server ends with. */
struct owning {
    struct nbd_server **server;
    struct block *block;
    struct error *err;
    int code;
};

static int serve_own(void *arg, bool own)
{
    struct owning *o = arg;
    int code = o->code == 0 ? block_own(o->block, own, o->err) : o->code;
    if (code < 0 && o->code == 0) {
        o->code = code;
        nbd_server_stop(*o->server);
    }
    return code;
}

/* The socket becomes the user's, and so do we: who speaks NBD to us is not to speak to root. */
static int user_become(const struct words *w, struct error *err)
{
    uid_t user = (uid_t)w->run_as;
    if (user == 0)
        return 0;
    if (chown(w->socket, user, user) < 0 || setgroups(0, NULL) < 0 || setresgid(user, user, user) < 0 || setresuid(user, user, user) < 0)
        return error_errno(err, -errno, "cannot become user %u", user);
    return prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 ? error_errno(err, -errno, "cannot keep memory from others") : 0;
}

static int serve(struct rbd_cluster *cluster, const struct words *w, struct error *err)
{
    struct nbd_server *server = NULL;
    struct block *block;
    const struct block_rbd_options options = {.image = w->image,
                                              .read_only = w->read_only,
                                              .epoch = w->epoch,
                                              .replaces = w->replaces,
                                              .unowned = w->while_connected,
                                              .lost = w->while_connected ? serve_lost : NULL,
                                              .wake = serve_wake,
                                              .wake_arg = &server};
    int code = block_rbd_open(cluster, &options, &block, err);
    if (code < 0)
        return code;
    struct owning owning = {.server = &server, .block = block, .err = err};
    const struct nbd_export export = {.name = w->image, .block = block, .access = w->read_only ? NBD_ACCESS_READ : NBD_ACCESS_WRITE};
    const struct nbd_server_options server_options = {.socket_path = w->socket,
                                                      .exports = &export,
                                                      .export_count = 1,
                                                      .run = serve_run,
                                                      .run_arg = block,
                                                      .own = w->while_connected ? serve_own : NULL,
                                                      .own_arg = &owning};
    code = nbd_server_create(&server_options, &server, err);
    if (code == 0)
        code = user_become(w, err);
    if (code == 0) {
        served = server;
        const struct sigaction action = {.sa_handler = on_signal};
        sigaction(SIGTERM, &action, NULL);
        sigaction(SIGINT, &action, NULL);
        signal(SIGPIPE, SIG_IGN);
        puts("ready");
        fflush(stdout);
        nbd_server_run(server);
        block_drain(block);
        if (!w->read_only && !w->while_connected)
            code = block_own(block, false, err); /* flushes, and says so where that fails */
    }
    served = NULL; /* a second signal finds nothing to stop */
    nbd_server_destroy(server); /* with the client that there may be: what is owned for it is let go of */
    code = code == 0 ? owning.code : code;
    block_close(block);
    return code;
}

/* ---- fill ---- */

static volatile sig_atomic_t fill_stopped;

/* Ceph may not answer: then the alarm ends it. Asked again it has no longer. */
static void on_fill_signal(int number UNUSED)
{
    if (!fill_stopped)
        alarm(FILL_END_S);
    fill_stopped = 1;
}

static void seen_print(struct task_seen *seen)
{
    struct bytes_writer out = {0};
    OBJECT_ENCODE(task_seen, seen, &out);
    printf("%.*s\n", (int)out.size, (const char *)out.data);
    fflush(stdout);
    bytes_writer_finish(&out);
    OBJECT_CLEAR(task_seen, seen);
}

static int fill_progress(uint64_t done_bytes, uint64_t total_bytes, void *arg UNUSED)
{
    struct task_seen seen = {0};
    OBJECT_SET(task_seen, &seen, state, operation_state_RUNNING);
    OBJECT_SET(task_seen, &seen, progress_done, done_bytes);
    OBJECT_SET(task_seen, &seen, progress_total, total_bytes);
    seen_print(&seen);
    return fill_stopped ? -ECANCELED : 0;
}

/* How it ended: the last line. */
static void fill_tell_end(int code, const struct error *err)
{
    struct task_seen seen = {0};
    OBJECT_SET(task_seen, &seen, state, code < 0 ? operation_state_FAILED : operation_state_SUCCEEDED);
    if (code < 0) {
        OBJECT_TEXT(task_seen, &seen, error_code, error_kind_info(err->kind)->code);
        OBJECT_TEXT(task_seen, &seen, error_text, err->text);
    }
    seen_print(&seen);
}

/* @ret_is: all of it is there already. */
static int origin_look(struct block *block, const struct words *w, bool *ret_is, struct error *err)
{
    char origin[RBD_ORIGIN_BYTES];
    int code = block_rbd_origin(block, origin, err);
    *ret_is = code == 0 && strcmp(origin, w->origin) == 0;
    if (code == 0 && !*ret_is && origin[0] != '\0')
        code = error_set(err, -EEXIST, ERROR_EXISTS, "image '%s' began as something else: %s", w->image, origin);
    return code;
}

static int fill_owned(struct block *block, const struct words *w, int fd, struct error *err)
{
    const struct block_fill_listener listener = {.progress = fill_progress};
    bool is_there;
    int code = origin_look(block, w, &is_there, err); /* another one may have ended meanwhile */
    if (code < 0 || is_there)
        return code;
    code = block_fill(block, fd, &listener, err);
    if (code == 0 && (code = block_now(block, BLOCK_FLUSH, 0, NULL, 0)) < 0)
        error_errno(err, code, "cannot flush image '%s'", w->image);
    return code == 0 ? block_rbd_set_origin(block, w->origin, err) : code;
}

static int fill_open(struct rbd_cluster *cluster, const struct words *w, int fd, struct error *err)
{
    const struct block_rbd_options options = {.image = w->image, .epoch = FILL_EPOCH, .replaces_dead = true, .unowned = true};
    struct block *block;
    struct error late;
    bool is_there;
    int code = block_rbd_open(cluster, &options, &block, err);
    if (code < 0)
        return code;
    code = origin_look(block, w, &is_there, err);
    if (code == 0 && !is_there && (code = block_own(block, true, err)) == 0) {
        code = fill_owned(block, w, fd, err);
        int ended = block_own(block, false, code == 0 ? err : &late);
        code = code == 0 ? ended : code;
    }
    block_close(block);
    return code;
}

static int fill(struct rbd_cluster *cluster, const struct words *w, struct error *err)
{
    CLEANUP_FD int fd = open(w->from, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, -errno, "cannot open %s", w->from);
    int code = rbd_image_create(cluster, w->image, w->size_bytes, err);
    if (code == -EEXIST) /* it may have been enlarged, or is to be */
        code = rbd_image_grow(cluster, w->image, w->size_bytes, err);
    return code == 0 ? fill_open(cluster, w, fd, err) : code;
}

/* Before Ceph is connected to. The agent's child becomes this program, and ends with the agent: so that the lock is let go of. */
static void fill_prepare(void)
{
    const struct sigaction action = {.sa_handler = on_fill_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN); /* nobody listens any more: the same, by the other signal */
    prctl(PR_SET_PDEATHSIG, SIGTERM);
}

static int status_print(struct rbd_cluster *cluster, struct error *err)
{
    struct rbd_status status;
    int code = rbd_cluster_status(cluster, &status, err);
    if (code == 0)
        printf("%s %" PRIu64 " %" PRIu64 "\n", status.mark, status.size_bytes, status.free_bytes);
    return code;
}

static int verb_do(struct rbd_cluster *cluster, const struct words *w, struct error *err)
{
    uint64_t size_bytes;
    if (strcmp(w->verb, "serve") == 0)
        return serve(cluster, w, err);
    if (strcmp(w->verb, "fill") == 0)
        return fill(cluster, w, err);
    if (strcmp(w->verb, "create") == 0)
        return rbd_image_create(cluster, w->image, w->size_bytes, err);
    if (strcmp(w->verb, "remove") == 0)
        return rbd_image_remove(cluster, w->image, err);
    if (strcmp(w->verb, "grow") == 0)
        return rbd_image_grow(cluster, w->image, w->size_bytes, err);
    if (strcmp(w->verb, "status") == 0)
        return status_print(cluster, err);
    int code = rbd_image_size(cluster, w->image, &size_bytes, err);
    if (code == 0)
        printf("%" PRIu64 "\n", size_bytes);
    return code;
}

static int key_read(const char *path, char **ret_key, struct error *err)
{
    size_t size;
    int code = file_read(path, KEY_BYTES_MAX, ret_key, &size, err);
    if (code == 0)
        (*ret_key)[strcspn(*ret_key, " \t\r\n")] = '\0';
    return code;
}

int main(int argc, char **argv)
{
    static const char *const verbs[] = {"serve", "create", "size", "grow", "fill", "remove", "status"};
    struct words w = {.conf = "/etc/ceph/ceph.conf", .user = "admin"};
    struct rbd_cluster *cluster = NULL;
    struct error err;
    CLEANUP_FREE char *key = NULL;
    bool known = false;
    int code = words_parse(argc, argv, &w);
    if (code != 0)
        return code - 1;
    for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
        known = known || strcmp(w.verb, verbs[i]) == 0;
    if (!known)
        return wrong("the verbs are serve, create, size, grow, fill, remove and status");
    bool fills = strcmp(w.verb, "fill") == 0;
    if (fills)
        fill_prepare();
    prctl(PR_SET_DUMPABLE, 0); /* there is a key in its memory */
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); /* before Ceph's libraries start threads */
    code = w.key_file != NULL ? key_read(w.key_file, &key, &err) : 0;
    const struct rbd_cluster_options options = {.conf = w.conf, .user = w.user, .key = key, .pool = w.pool};
    if (code == 0)
        code = rbd_cluster_open(&options, &cluster, &err);
    if (code == 0)
        code = verb_do(cluster, &w, &err);
    rbd_cluster_close(cluster);
    if (fills)
        fill_tell_end(code, &err);
    else if (code < 0)
        fprintf(stderr, "drover-rbd: %s\n", err.text);
    return code < 0;
}
