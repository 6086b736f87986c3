/* The verbs of drover-backup that show a backup for as long as they run: mount (files) and serve (NBD). Both print how
 * to look at it, then wait for SIGTERM or SIGINT.
 *
 * While they run the store's collection keeps what they may read (a session, repo_gc.h): a backup that is pruned
 * meanwhile stays readable here, and its space comes back after the end. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "backup/backup_block.h"
#include "backup/disk_parts.h"
#include "backup/fuse_mount.h"
#include "backup/tool.h"
#include "block/nbd_server.h"
#include "block/nbd_wire.h"

enum { FILES_MAX = MANIFEST_DISKS_MAX * 8 + 2, COMPLAINTS_MAX = 100 };

/* ---- shared ---- */

/* What could not be read, on standard error: whoever reads the file gets EIO alone. */
struct complaints {
    pthread_mutex_t lock;
    unsigned count;
    int progress_fd;      /* of serve: told there, too, at most one a second; 0: nowhere */
    struct timespec last; /* told there */
    bool gone_ends;       /* of serve: what the view has and the store has not ends it */
    struct error gone;    /* code 0: nothing is */
};

/* {"complaint":TEXT}: for whoever lets its readers wait and try again. */
static void complaint_tell(struct complaints *c, const struct error *err)
{
    struct bytes_writer line = {0};
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (now.tv_sec == c->last.tv_sec)
        return;
    c->last = now;
    bytes_put_text(&line, "{\"complaint\":");
    json_put_string(&line, err->text);
    bytes_put_text(&line, "}\n");
    (void)!write(c->progress_fd, line.data, line.size);
    bytes_writer_finish(&line);
}

static void complain(void *arg, const struct error *err)
{
    struct complaints *c = arg;
    pthread_mutex_lock(&c->lock);
    if (c->progress_fd > 0)
        complaint_tell(c, err);
    if (c->count++ < COMPLAINTS_MAX)
        fprintf(stderr, "drover-backup: %s%s\n", err->text,
                c->count == COMPLAINTS_MAX ? "; no more of this is told" : "");
    if (c->gone_ends && err->code == -ENOENT && c->gone.code == 0) {
        c->gone = *err;
        kill(getpid(), SIGTERM); /* wait_for_end() */
    }
    pthread_mutex_unlock(&c->lock);
}

static void signals_of_end(sigset_t *ret_set)
{
    sigemptyset(ret_set);
    sigaddset(ret_set, SIGTERM);
    sigaddset(ret_set, SIGINT);
}

/* Until @fd is readable or a signal has asked for the end; these are blocked in all threads but here, so that none is
 * missed between looking and sleeping. */
static void wait_for_end(const struct tool_options *o, int fd)
{
    struct pollfd fds = {.fd = fd, .events = POLLIN};
    sigset_t blocked, open;
    signals_of_end(&blocked);
    pthread_sigmask(SIG_BLOCK, &blocked, &open);
    sigdelset(&open, SIGTERM);
    sigdelset(&open, SIGINT);
    while (!atomic_load(o->cancel) && ppoll(&fds, 1, NULL, &open) <= 0)
        ;
}

/* The disks that --disk names; all where it names none. */
static int disks_choose(const struct tool_options *o, const struct backup_reader *r, bool ret_chosen[MANIFEST_DISKS_MAX],
                        struct error *err)
{
    size_t count = backup_reader_manifest(r)->head.disks.count, disk;
    for (size_t i = 0; i < count; i++)
        ret_chosen[i] = o->disks.count == 0;
    for (unsigned i = 0; i < o->disks.count; i++) {
        int code = backup_reader_disk(r, o->disks.items[i].name, &disk, err);
        if (code < 0)
            return code;
        ret_chosen[disk] = true;
    }
    return count > 0 ? 0 : error_set(err, -ENOENT, ERROR_NOT_FOUND, "the backup has no disks");
}

/* ---- mount ---- */

/* A disk, a part of one, or a text. */
struct shown {
    struct mounting *mounting;
    size_t disk;
    uint64_t offset;
    char *text; /* owned; NULL: it is of the disk */
};

struct mounting {
    struct backup_reader *reader;
    struct complaints complaints;
    struct fuse_file files[FILES_MAX];
    struct shown shown[FILES_MAX];
    unsigned count, parts; /* parts: files that are partitions */
};

static int shown_read(void *arg, uint64_t offset, void *buffer, size_t size)
{
    const struct shown *s = arg;
    struct error err = {0};
    if (s->text != NULL) {
        memcpy(buffer, s->text + offset, size);
        return 0;
    }
    if (backup_reader_read(s->mounting->reader, s->disk, s->offset + offset, buffer, size, &err) == 0)
        return 0;
    complain(&s->mounting->complaints, &err);
    return -EIO;
}

static int shown_extent(void *arg, uint64_t offset, bool *ret_zero, uint64_t *ret_end)
{
    const struct shown *s = arg;
    struct error err = {0};
    uint64_t end;
    if (backup_reader_extent(s->mounting->reader, s->disk, s->offset + offset, ret_zero, &end, &err) < 0) {
        complain(&s->mounting->complaints, &err);
        return -EIO;
    }
    *ret_end = end - s->offset; /* may be beyond a partition; whoever asks stops at the file's end */
    return 0;
}

static struct shown *file_add(struct mounting *m, const char *name, uint64_t size_bytes)
{
    if (m->count == FILES_MAX)
        return NULL;
    struct shown *s = &m->shown[m->count];
    struct fuse_file *f = &m->files[m->count++];
    *f = (struct fuse_file){.size_bytes = size_bytes, .read = shown_read, .arg = s};
    snprintf(f->name, sizeof f->name, "%s", name);
    s->mounting = m;
    return s;
}

static void text_add(struct mounting *m, const char *name, const void *data, size_t size)
{
    struct shown *s = file_add(m, name, size + 1);
    if (s == NULL)
        return;
    s->text = xcalloc(1, size + 1);
    memcpy(s->text, data, size);
    s->text[size] = '\n';
}

struct disk_reading {
    struct backup_reader *reader;
    size_t disk;
};

static int disk_read(void *arg, uint64_t offset, void *buffer, size_t size, struct error *err)
{
    const struct disk_reading *d = arg;
    return backup_reader_read(d->reader, d->disk, offset, buffer, size, err);
}

/* <name>.raw, and <name>_part<number>.raw for each partition: '_' is in no name of a disk. */
static void disk_add(struct mounting *m, size_t disk)
{
    const struct manifest_disk *d = manifest_disk_at(backup_reader_manifest(m->reader), disk);
    struct disk_part parts[DISK_PARTS_MAX];
    struct disk_reading reading = {m->reader, disk};
    struct error err = {0};
    char name[FUSE_FILES_NAME_BYTES];
    snprintf(name, sizeof name, "%s.raw", d->name);
    struct shown *s = file_add(m, name, d->size_bytes);
    if (s == NULL)
        return;
    s->disk = disk;
    m->files[m->count - 1].extent = shown_extent;
    int count = disk_parts_find(d->size_bytes, disk_read, &reading, parts, &err);
    if (count < 0) /* the rest of the disk may be fine */
        complain(&m->complaints, &err);
    for (int i = 0; i < count; i++) {
        snprintf(name, sizeof name, "%s_part%u.raw", d->name, parts[i].number);
        s = file_add(m, name, parts[i].size_bytes);
        if (s == NULL)
            return;
        s->disk = disk;
        s->offset = parts[i].offset_bytes;
        m->files[m->count - 1].extent = shown_extent;
        m->parts++;
    }
}

static int files_make(const struct tool_options *o, struct mounting *m, struct error *err)
{
    const struct manifest *manifest = backup_reader_manifest(m->reader);
    bool chosen[MANIFEST_DISKS_MAX] = {false};
    struct bytes_writer json = {0};
    int code = disks_choose(o, m->reader, chosen, err);
    if (code < 0)
        return code;
    OBJECT_ENCODE(backup_manifest, &manifest->head, &json);
    text_add(m, "backup.json", json.data, json.size);
    bytes_writer_finish(&json);
    if (manifest->definition != NULL)
        text_add(m, "vm.json", manifest->definition, strlen(manifest->definition));
    for (size_t i = 0; i < manifest->head.disks.count; i++)
        if (chosen[i])
            disk_add(m, i);
    return 0;
}

static void mounted_tell(const struct tool_options *o, const struct mounting *m)
{
    const char *example = NULL;
    printf("Backup %s of %s, read-only at %s:\n\n", backup_reader_manifest(m->reader)->head.id,
           backup_reader_manifest(m->reader)->head.vm_name, o->at);
    for (unsigned i = 0; i < m->count; i++) {
        char size[24];
        printf("  %-28s %10s\n", m->files[i].name, tool_bytes_text(m->files[i].size_bytes, size, sizeof size));
        if (m->shown[i].text == NULL && (example == NULL || (m->parts > 0 && m->shown[i].offset > 0)))
            example = m->files[i].name;
    }
    printf("\nSingle files of an ext4 file system, without mounting it:\n"
           "  debugfs -R 'ls -l /etc' %s/%s\n"
           "  debugfs -R 'dump /etc/fstab /tmp/fstab' %s/%s\n"
           "Any file system that this host knows (needs loop devices; ext4: add noload, xfs: add norecovery):\n"
           "  mount -o ro,loop,noload %s/%s /mnt\n"
           "\nIt ends with Ctrl-C, SIGTERM, or `umount %s`.\n",
           o->at, example, o->at, example, o->at, example, o->at);
    fflush(stdout);
}

int tool_mount(const struct tool_options *o, struct error *err)
{
    struct tool_place place = {0};
    struct fuse_mount *mount = NULL;
    struct mounting *m = NEW(struct mounting);
    sigset_t blocked;
    int64_t time_ms = 0;
    pthread_mutex_init(&m->complaints.lock, NULL);
    signals_of_end(&blocked);
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);
    int code = o->at == NULL ? error_set_field(err, -EINVAL, ERROR_INVALID, "/at",
                                               "--at DIRECTORY is needed: an empty directory where the files are to be")
                             : tool_reader_open(o, &place, &m->reader, err);
    if (code == 0)
        code = files_make(o, m, err);
    if (code == 0)
        (void)manifest_time_parse(backup_reader_manifest(m->reader)->head.created_at, &time_ms);
    struct fuse_files files = {
        .items = m->files, .count = m->count, .time_s = time_ms / 1000, .user = getuid(), .group = getgid()};
    if (code == 0)
        code = fuse_mount_start(o->at, &files, &mount, err);
    if (code == 0) {
        mounted_tell(o, m);
        wait_for_end(o, fuse_mount_over_fd(mount));
    }
    fuse_mount_end(mount);
    for (unsigned i = 0; i < m->count; i++)
        free(m->shown[i].text);
    backup_reader_close(m->reader);
    tool_close(&place);
    pthread_mutex_destroy(&m->complaints.lock);
    free(m);
    return code;
}

/* ---- serve ---- */

struct serving {
    struct backup_reader *reader;
    struct complaints complaints;
    struct nbd_export exports[MANIFEST_DISKS_MAX];
    unsigned count;
    struct nbd_server *server;
    pthread_t thread;
    bool running;
};

static void *serve_run(void *arg)
{
    struct serving *s = arg;
    nbd_server_run(s->server);
    return NULL;
}

static int exports_open(const struct tool_options *o, struct serving *s, struct error *err)
{
    const struct manifest *manifest = backup_reader_manifest(s->reader);
    const struct backup_block_options options = {
        .threads = o->threads, .complain = complain, .complain_arg = &s->complaints};
    bool chosen[MANIFEST_DISKS_MAX] = {false};
    int code = disks_choose(o, s->reader, chosen, err);
    for (size_t i = 0; code == 0 && i < manifest->head.disks.count; i++) {
        struct block *block;
        if (!chosen[i])
            continue;
        code = backup_block_open(s->reader, i, &options, &block, err);
        if (code == 0)
            s->exports[s->count++] = (struct nbd_export){
                .name = manifest_disk_at(manifest, i)->name, .block = block, .access = NBD_ACCESS_READ};
    }
    return code;
}

static void served_tell(const struct tool_options *o, const struct serving *s)
{
    printf("Backup %s of %s, read-only by NBD at %s:\n\n", backup_reader_manifest(s->reader)->head.id,
           backup_reader_manifest(s->reader)->head.vm_name, o->socket);
    for (unsigned i = 0; i < s->count; i++) {
        char size[24];
        printf("  %-28s %10s\n", s->exports[i].name, tool_bytes_text(s->exports[i].block->size_bytes, size, sizeof size));
    }
    printf("\nA disk of it, with qemu-utils, libguestfs-tools or, where the kernel has nbd, as a device:\n"
           "  qemu-img convert -O qcow2 'nbd+unix:///%s?socket=%s' disk.qcow2\n"
           "  guestfish --ro --format=raw -a 'nbd:///%s?socket=%s' -i\n"
           "  modprobe nbd && nbd-client -unix %s -name %s /dev/nbd0\n"
           "\nIt ends with Ctrl-C or SIGTERM.\n",
           s->exports[0].name, o->socket, s->exports[0].name, o->socket, o->socket, s->exports[0].name);
    fflush(stdout);
}

static int serve_start(const struct tool_options *o, struct serving *s, struct error *err)
{
    struct nbd_server_options options = {.socket_path = o->socket, .exports = s->exports, .export_count = s->count};
    char *end = NULL;
    if (strncmp(o->socket, "fd:", 3) == 0) {
        options.listen_fd = (int)strtol(o->socket + 3, &end, 10);
        options.has_listen_fd = true;
        if (*end != '\0' || options.listen_fd <= STDERR_FILENO)
            return error_set_field(err, -EINVAL, ERROR_INVALID, "/socket", "'%.40s' is no socket that this program was started with",
                                   o->socket);
    }
    int code = nbd_server_create(&options, &s->server, err);
    if (code == 0)
        code = -pthread_create(&s->thread, NULL, serve_run, s);
    if (code < 0 && s->server != NULL)
        error_errno(err, code, "cannot start a thread");
    s->running = code == 0;
    return code;
}

int tool_serve(const struct tool_options *o, struct error *err)
{
    struct tool_place place = {0};
    struct serving s = {.count = 0};
    struct tool_progress progress;
    sigset_t blocked;
    tool_progress_init(&progress, o);
    s.complaints.progress_fd = MAX(o->progress_fd, 0);
    s.complaints.gone_ends = true;
    pthread_mutex_init(&s.complaints.lock, NULL);
    signals_of_end(&blocked);
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);
    int code = o->socket == NULL ? error_set_field(err, -EINVAL, ERROR_INVALID, "/socket",
                                                   "--socket PATH is needed: where the disks are to be served")
                                 : tool_reader_open(o, &place, &s.reader, err);
    if (code == 0)
        code = exports_open(o, &s, err);
    if (code == 0)
        code = serve_start(o, &s, err);
    if (code == 0 && o->progress_fd >= 0)
        tool_progress_report(&progress, &(struct backup_progress){.step = "serving"});
    else if (code == 0)
        served_tell(o, &s);
    if (code == 0)
        wait_for_end(o, -1);
    if (s.running) {
        nbd_server_stop(s.server);
        pthread_join(s.thread, NULL);
    }
    nbd_server_destroy(s.server);
    /* Who could not reach the store for so long that a collection did not wait for him reads by a list of packs that were packed anew since. */
    if (code == 0 && s.complaints.gone.code < 0)
        code = error_set(err, -ESTALE, ERROR_NOT_FOUND, "%s; the store was tidied up since this was begun: begin it again", s.complaints.gone.text);
    for (unsigned i = 0; i < s.count; i++)
        block_close(s.exports[i].block);
    backup_reader_close(s.reader);
    tool_close(&place);
    pthread_mutex_destroy(&s.complaints.lock);
    tool_progress_end(&progress, NULL, code, err);
    return code;
}
