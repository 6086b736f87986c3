/* Files of a VM; see vm_files.h for the layout.
 *
 * Order of writing, so that a kill at any instant leaves something that can be gone on with:
 *   make    vm.json first (intent), then images, disks, taps, config.json, and last the process
 *   remove  the lock, taps and socket, then the directory gets another name (from then on the VM is gone), then its files */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file.h"
#include "common/log.h"
#include "compute/agent/disk_file.h"
#include "compute/agent/host_network.h"
#include "compute/agent/pool_dir.h"
#include "compute/agent/pool_rbd.h"
#include "compute/agent/replica_dir.h"
#include "compute/agent/seed_files.h"
#include "compute/agent/tap.h"
#include "compute/agent/vm_files.h"
#include "compute/agent/vmm_cgroup.h"
#include "compute/agent/vmm_mount.h"
#include "compute/agent/vmm_process.h"
#include "compute/agent/vmm_user.h"
#include "migration/snapshot_memory.h"

#define UEFI_VARIABLES_FILE "uefi-variables.fd" /* in the VM's directory; made by its VMM */

#define LOG_TAIL_BYTES 1024
#define DISK_SECTOR_BYTES 512u
#define VOLUME_EPOCH_SHIFT 32 /* of a volume's layers: attachment, then the VM's epoch */
#define VOLUME_EPOCH_MASK UINT64_C(0xffffffff)

char *vm_files_path(const struct vm_places *places, const char *vm_id, const char *leaf)
{
    return leaf[0] == '\0' ? xasprintf("%s/%s", places->vms_dir, vm_id)
                           : xasprintf("%s/%s/%s", places->vms_dir, vm_id, leaf);
}

int vm_files_control_path(const struct vm_places *places, const char *vm_id, char buffer[VM_FILES_CONTROL_PATH_SIZE],
                          struct error *err)
{
    char digits[13];
    unsigned n = 0;
    for (const char *at = vm_id; *at != '\0' && n < sizeof(digits) - 1; at++)
        if (*at != '-')
            digits[n++] = *at;
    digits[n] = '\0';
    int length = snprintf(buffer, VM_FILES_CONTROL_PATH_SIZE, "%s/%s.sock", places->run_dir, digits);
    if (length < 0 || length >= VM_FILES_CONTROL_PATH_SIZE)
        return error_set(err, -ENAMETOOLONG, ERROR_INVALID,
                         "the control socket's path in %s would be longer than 107 bytes; give a shorter --data",
                         places->run_dir);
    return 0;
}

int vm_files_load(const struct vm_places *places, const char *vm_id, struct agent_vm *ret_file, struct error *err)
{
    CLEANUP_FREE char *path = vm_files_path(places, vm_id, "vm.json");
    CLEANUP_FREE char *text = NULL;
    struct agent_vm file = {.format = 0};
    size_t size;
    int r = file_read(path, VM_FILES_JSON_BYTES_MAX, &text, &size, err);
    if (r < 0)
        return r;
    r = OBJECT_DECODE(agent_vm, text, size, OBJECT_STORED, &file, err);
    if (r == 0 && strcmp(file.order.id, vm_id) != 0) {
        OBJECT_CLEAR(agent_vm, &file);
        r = error_set(err, -EINVAL, ERROR_INTERNAL, "it is of another VM");
    }
    if (r < 0) {
        error_prefix(err, "%s: ", path);
        return r;
    }
    *ret_file = file;
    return 0;
}

int vm_files_save(const struct vm_places *places, const struct agent_vm *file, struct error *err)
{
    CLEANUP_FREE char *dir = vm_files_path(places, file->order.id, "");
    CLEANUP_FREE char *path = vm_files_path(places, file->order.id, "vm.json");
    struct bytes_writer out = {.data = NULL};
    int r = file_make_directories(dir, 0700, err);
    if (r < 0)
        return r;
    OBJECT_ENCODE(agent_vm, file, &out);
    r = file_write_atomic(path, out.data, out.size, 0600, err);
    bytes_writer_finish(&out);
    /* the directory's own name has to last as well */
    return r < 0 ? r : file_sync_directory(places->vms_dir, err);
}

static char *raw_path(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk)
{
    return xasprintf("%s/%s/disks/%s.raw", places->vms_dir, order->id, disk->name);
}

char *vm_files_layers_path(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk)
{
    CLEANUP_FREE char *raw = raw_path(places, order, disk);
    const struct pool_order *pool = pool_dir_of(order, disk);
    const struct pool_order here = pool_dir_here(places->vms_dir);
    if (pool_rbd_is(pool))
        return NULL;
    if (pool != NULL)
        return pool_dir_disk(pool, order->id, disk);
    if (disk->place != NULL && disk->volume == NULL)
        return pool_dir_disk(&here, order->id, disk);
    if (disk->read_only || access(raw, F_OK) == 0)
        return NULL;
    return xasprintf("%s/%s/disks/%s.layers", places->vms_dir, order->id, disk->name);
}

char *vm_files_disk_path(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk)
{
    CLEANUP_FREE char *layers = vm_files_layers_path(places, order, disk);
    return pool_rbd_is(pool_dir_of(order, disk)) ? pool_rbd_socket(places, order->id, disk->name)
           : layers != NULL                      ? xasprintf("%s/%s.disk", layers, disk->name)
                                                 : raw_path(places, order, disk);
}

char *vm_files_memory_directory(const struct vm_places *places, const struct vm_order *order)
{
    const struct vm_disk *disks = order->disks.items;
    for (size_t i = 0; i < order->disks.count; i++)
        if (!disks[i].read_only)
            return vm_files_layers_path(places, order, &disks[i]);
    return NULL;
}

uint64_t vm_files_resume_bytes(const struct vm_places *places, const struct vm_order *order)
{
    CLEANUP_FREE char *directory = vm_files_memory_directory(places, order);
    CLEANUP_FREE char *snapshot = NULL;
    uint64_t bytes;
    if (directory == NULL || snapshot_resume_read(directory, &snapshot, NULL) < 0 || snapshot == NULL ||
        snapshot_memory_look(directory, snapshot, &bytes, NULL) < 0)
        return 0;
    return bytes;
}

/* A fixed address for a card that was given none: locally administered, of the VM's id and the card's index. */
static void make_mac(const char *vm_id, unsigned index, char buffer[18])
{
    uint8_t hash[SHA256_DIGEST_LENGTH];
    char text[64];
    int length = snprintf(text, sizeof(text), "%s/%u", vm_id, index);
    SHA256((const uint8_t *)text, (size_t)length, hash);
    snprintf(buffer, 18, "52:54:00:%02x:%02x:%02x", hash[0], hash[1], hash[2]);
}

static void config_mtu(const struct vm_places *places, const struct vm_nic *from, struct vmm_nic *nic)
{
    struct network *network =
        places->network != NULL && from->network != NULL ? host_network_find(places->network, from->network) : NULL;
    if (network == NULL)
        return;
    if (OBJECT_HAS(network, network, mtu))
        OBJECT_SET(vmm_nic, nic, mtu, network->mtu);
    OBJECT_CLEAR(network, network);
    free(network);
}

unsigned nic_number(const struct vm_nic *nic, size_t place)
{
    return OBJECT_HAS(vm_nic, nic, number) ? nic->number : (unsigned)place;
}

void vm_files_nic(const struct vm_places *places, const struct vm_order *order, size_t i, struct vmm_nic *ret_nic)
{
    const struct vm_nic *from = (const struct vm_nic *)order->nics.items + i;
    unsigned number = nic_number(from, i);
    char tap[TAP_NAME_SIZE], mac[18], id[24];
    tap_name(order->id, number, tap);
    make_mac(order->id, number, mac);
    snprintf(id, sizeof(id), "nic%u", number);
    OBJECT_TEXT(vmm_nic, ret_nic, id, id);
    OBJECT_TEXT(vmm_nic, ret_nic, tap, tap);
    OBJECT_TEXT(vmm_nic, ret_nic, mac, from->mac != NULL ? from->mac : mac);
    if (OBJECT_HAS(vm_nic, from, limits)) {
        object_copy(&vmm_limits_desc, &ret_nic->limits, &from->limits);
        object_mark(&vmm_nic_desc, ret_nic, "limits");
    }
    if (OBJECT_HAS(vm_nic, from, queues))
        OBJECT_SET(vmm_nic, ret_nic, queues, from->queues);
    if (places->throw_away)
        OBJECT_SET(vmm_nic, ret_nic, cut, true);
    config_mtu(places, from, ret_nic);
}

bool vm_files_disk_moves(const struct vm_disk *disk)
{
    return !disk->read_only && (disk->pool == NULL || disk->arriving);
}

bool vm_files_disks_move(const struct vm_order *order)
{
    const struct vm_disk *disks = order->disks.items;
    for (size_t i = 0; i < order->disks.count; i++)
        if (vm_files_disk_moves(&disks[i]))
            return true;
    return false;
}

/* Past the page cache: nothing may be written by this host's kernel after the disk has become another's. */
static void config_shared(struct vmm_disk *disk)
{
    OBJECT_SET(vmm_disk, disk, shared, true);
    OBJECT_SET(vmm_disk, disk, direct, true);
}

/* A volume is opened under an epoch of its own, which each attachment raises: VMs' epochs have nothing to do with each other. */
uint64_t vm_files_disk_epoch(const struct vm_order *order, const struct vm_disk *disk)
{
    return disk->volume != NULL ? disk->attachment << VOLUME_EPOCH_SHIFT | (order->epoch & VOLUME_EPOCH_MASK) : order->epoch;
}

static void config_volume(const struct vm_order *order, const struct vm_disk *from, struct vmm_disk *disk)
{
    OBJECT_SET(vmm_disk, disk, epoch, vm_files_disk_epoch(order, from));
    OBJECT_SET(vmm_disk, disk, size_bytes, from->size_bytes);
    OBJECT_SET(vmm_disk, disk, grow, true);
}

void vm_files_disk(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *from, const char *directory,
                   struct vmm_disk *ret_disk)
{
    const struct pool_order *pool = pool_dir_of(order, from);
    bool elsewhere = directory != NULL && !pool_rbd_is(pool);
    CLEANUP_FREE char *path = elsewhere ? xasprintf("%s/%s.disk", directory, from->name) : vm_files_disk_path(places, order, from);
    CLEANUP_FREE char *layers = vm_files_layers_path(places, order, from);
    OBJECT_TEXT(vmm_disk, ret_disk, path, path);
    if (layers != NULL)
        OBJECT_SET(vmm_disk, ret_disk, format, disk_format_LAYERS);
    if (pool_rbd_is(pool)) {
        OBJECT_SET(vmm_disk, ret_disk, format, disk_format_NBD);
        OBJECT_SET(vmm_disk, ret_disk, shared, true);
    }
    if (pool != NULL && pool->kind == pool_kind_SHARED_DIR)
        config_shared(ret_disk);
    if (from->volume != NULL)
        config_volume(order, from, ret_disk);
    OBJECT_SET(vmm_disk, ret_disk, read_only, from->read_only);
    OBJECT_TEXT(vmm_disk, ret_disk, serial, from->name);
    OBJECT_TEXT(vmm_disk, ret_disk, id, from->name);
    if (OBJECT_HAS(vm_disk, from, on_disk_error))
        OBJECT_SET(vmm_disk, ret_disk, on_disk_error, from->on_disk_error);
    if (OBJECT_HAS(vm_disk, from, limits)) {
        object_copy(&vmm_limits_desc, &ret_disk->limits, &from->limits);
        object_mark(&vmm_disk_desc, ret_disk, "limits");
    }
}

#define RESTORED_FILE "disks/restored"

int vm_files_set_restored(const struct vm_places *places, const char *vm_id, const char *operation, struct error *err)
{
    CLEANUP_FREE char *path = vm_files_path(places, vm_id, RESTORED_FILE);
    if (operation != NULL)
        return file_write_atomic(path, operation, strlen(operation), 0600, err);
    return unlink(path) < 0 && errno != ENOENT ? error_errno(err, -errno, "cannot remove %s", path) : 0;
}

bool vm_files_was_restored(const struct vm_places *places, const char *vm_id, const char *operation)
{
    CLEANUP_FREE char *path = vm_files_path(places, vm_id, RESTORED_FILE);
    CLEANUP_FREE char *text = NULL;
    size_t size;
    return file_read(path, 64, &text, &size, NULL) == 0 && (operation == NULL || strcmp(text, operation) == 0);
}

#define HALF_FILE "half"

int vm_files_set_half(const struct vm_places *places, const char *vm_id, bool half, struct error *err)
{
    CLEANUP_FREE char *path = vm_files_path(places, vm_id, HALF_FILE);
    CLEANUP_FREE char *home = vm_files_path(places, vm_id, "");
    if (half)
        return file_write_atomic(path, "", 0, 0600, err);
    if (unlink(path) < 0 && errno != ENOENT)
        return error_errno(err, -errno, "cannot remove %s", path);
    return file_sync_directory(home, err);
}

static int check_half(const struct vm_places *places, const char *vm_id, struct error *err)
{
    CLEANUP_FREE char *path = vm_files_path(places, vm_id, HALF_FILE);
    if (access(path, F_OK) < 0)
        return errno == ENOENT ? 0 : error_errno(err, -errno, "cannot look at %s", path);
    return error_set(err, -EFBIG, ERROR_CONFLICT,
                     "its disks are not whole: they were being made of those of another VM, and that did not come to its end; delete it, and clone again");
}

char *vm_files_source_path(const struct vm_places *places, const char *vm_id)
{
    return vm_files_path(places, vm_id, "disks/restore.sock");
}

static void config_source(const struct vm_places *places, const char *vm_id, struct vmm_disk *disk)
{
    CLEANUP_FREE char *path = vm_files_source_path(places, vm_id);
    if (strlen(path) <= object_field(&vmm_disk_desc, "source")->max) /* else it was never restored so */
        OBJECT_TEXT(vmm_disk, disk, source, path);
    if (places->throw_away)
        OBJECT_SET(vmm_disk, disk, on_demand, true);
}

static void config_devices(const struct vm_places *places, const struct vm_order *order, bool arriving, struct vmm_config *config)
{
    const struct vm_disk *disks = order->disks.items;
    bool restored = vm_files_was_restored(places, order->id, NULL);
    for (size_t i = 0; i < order->disks.count; i++) {
        if (disks[i].leaving)
            continue;
        struct vmm_disk *disk = OBJECT_ADD(vmm_config, config, disks);
        vm_files_disk(places, order, &disks[i], NULL, disk);
        if (restored && disk->format == disk_format_LAYERS && !disks[i].read_only)
            config_source(places, order->id, disk);
        if (arriving && vm_files_disk_moves(&disks[i]))
            OBJECT_SET(vmm_disk, disk, copied, true);
    }
    if (seed_files_wanted(order)) { /* last, so that it moves no other disk's name in the guest */
        struct vmm_disk *disk = OBJECT_ADD(vmm_config, config, disks);
        CLEANUP_FREE char *path = vm_files_path(places, order->id, SEED_FILE);
        OBJECT_TEXT(vmm_disk, disk, path, path);
        OBJECT_SET(vmm_disk, disk, read_only, true);
        OBJECT_TEXT(vmm_disk, disk, serial, "cidata");
    }
    for (size_t i = 0; i < order->nics.count; i++)
        vm_files_nic(places, order, i, OBJECT_ADD(vmm_config, config, nics));
}

static void config_image(const struct vm_places *places, const struct artifact *artifact, struct vmm_config *config,
                         const char *field)
{
    if (artifact->sha256 == NULL)
        return;
    CLEANUP_FREE char *path = xasprintf("%s/%s", places->images_dir, artifact->sha256);
    object_set_text(&vmm_config_desc, config, field, path);
}

char *vm_files_lease_path(const struct vm_places *places, const char *vm_id)
{
    return places->lease_dir != NULL ? xasprintf("%s/%s.lease", places->lease_dir, vm_id)
                                     : vm_files_path(places, vm_id, "lease");
}

static int config_write(const struct vm_places *places, const struct vm_order *order, bool arriving, const char *leaf,
                        struct error *err)
{
    CLEANUP_FREE char *path = vm_files_path(places, order->id, leaf);
    CLEANUP_FREE char *console = vm_files_path(places, order->id, "console.log");
    CLEANUP_FREE char *exit_path = vm_files_path(places, order->id, "exit.json");
    CLEANUP_FREE char *lease = vm_files_lease_path(places, order->id);
    char control[VM_FILES_CONTROL_PATH_SIZE];
    struct vmm_config config = {.name = NULL};
    struct bytes_writer out = {.data = NULL};
    int r = vm_files_control_path(places, order->id, control, err);
    if (r < 0)
        return r;
    OBJECT_TEXT(vmm_config, &config, name, order->name);
    OBJECT_TEXT(vmm_config, &config, vm_id, order->id);
    OBJECT_SET(vmm_config, &config, epoch, order->epoch);
    OBJECT_SET(vmm_config, &config, vcpus, order->vcpus);
    OBJECT_SET(vmm_config, &config, memory_bytes, order->memory_bytes);
    if (places->shared_memory)
        OBJECT_SET(vmm_config, &config, memory_shared, true);
    if (OBJECT_HAS(vm_order, order, cpu_model))
        OBJECT_TEXT(vmm_config, &config, cpu_model, cpu_kind_desc.names[order->cpu_model]);
    config_image(places, &order->kernel, &config, "kernel");
    config_image(places, &order->initrd, &config, "initrd");
    if (OBJECT_HAS(vm_order, order, firmware)) {
        CLEANUP_FREE char *vars = vm_files_path(places, order->id, UEFI_VARIABLES_FILE);
        OBJECT_TEXT(vmm_config, &config, firmware, firmware_desc.names[order->firmware]);
        if (order->firmware == firmware_UEFI)
            OBJECT_TEXT(vmm_config, &config, firmware_vars_path, vars);
    } else {
        OBJECT_TEXT(vmm_config, &config, cmdline, order->cmdline);
    }
    config_devices(places, order, arriving, &config);
    OBJECT_SET(vmm_config, &config, balloon, true);
    OBJECT_SET(vmm_config, &config, agent_channel, true);
    OBJECT_TEXT(vmm_config, &config, control_path, control);
    OBJECT_TEXT(vmm_config, &config, console_log_path, console);
    OBJECT_TEXT(vmm_config, &config, exit_path, exit_path);
    OBJECT_TEXT(vmm_config, &config, lease_path, lease);
    OBJECT_SET(vmm_config, &config, paused, order->wanted == vm_wanted_PAUSED);
    r = object_validate(&vmm_config_desc, &config, OBJECT_STORED, err);
    if (r == 0) {
        OBJECT_ENCODE(vmm_config, &config, &out);
        r = file_write_atomic(path, out.data, out.size, 0600, err);
    }
    bytes_writer_finish(&out);
    OBJECT_CLEAR(vmm_config, &config);
    return r;
}

int vm_files_write_config(const struct vm_places *places, const struct vm_order *order, bool arriving, struct error *err)
{
    return config_write(places, order, arriving, "config.json", err);
}

int vm_files_write_next_config(const struct vm_places *places, const struct vm_order *order, struct error *err)
{
    return config_write(places, order, false, VM_NEXT_CONFIG, err);
}

int vm_files_read_exit(const struct vm_places *places, const char *vm_id, pid_t pid, struct vmm_exit *ret_word)
{
    CLEANUP_FREE char *path = vm_files_path(places, vm_id, "exit.json");
    CLEANUP_FREE char *text = NULL;
    struct vmm_exit word = {.status = 0};
    size_t size;
    if (file_read_foreign(path, VM_FILES_JSON_BYTES_MAX, &text, &size, NULL) < 0 ||
        OBJECT_DECODE(vmm_exit, text, size, OBJECT_LENIENT, &word, NULL) < 0)
        return -ENOENT;
    if (word.pid != (uint64_t)pid) {
        OBJECT_CLEAR(vmm_exit, &word);
        return -ENOENT;
    }
    *ret_word = word;
    return 0;
}

const char *vm_files_last_error(const struct vm_places *places, const char *vm_id, char *buffer, size_t size)
{
    CLEANUP_FREE char *path = vm_files_path(places, vm_id, "vmm.log");
    char tail[LOG_TAIL_BYTES + 1], *line = NULL;
    CLEANUP_FD int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    off_t end = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
    ssize_t n = end <= 0 ? 0 : pread(fd, tail, LOG_TAIL_BYTES, MAX((off_t)0, end - LOG_TAIL_BYTES));
    buffer[0] = '\0';
    tail[MAX(n, (ssize_t)0)] = '\0';
    for (char *at = strstr(tail, "<3>"); at != NULL; at = strstr(at + 1, "<3>"))
        if (at == tail || at[-1] == '\n')
            line = at;
    if (line == NULL)
        return buffer;
    snprintf(buffer, size, "%.*s", (int)strcspn(line + 3, "\n"), line + 3);
    for (char *at = buffer; *at != '\0'; at++)
        if (*at < ' ' || *at > '~')
            *at = '?';
        else if (*at == '"')
            *at = '\''; /* it is shown within quotes */
    return buffer;
}

/* ---- the thread pool's part ---- */

/* Above the image where it can be shared, else as a copy of it; with layers in any case where there is none. */
static int make_disk(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk,
                     struct error *err)
{
    CLEANUP_FREE char *layers = vm_files_layers_path(places, order, disk);
    CLEANUP_FREE char *raw = raw_path(places, order, disk);
    CLEANUP_FREE char *image = disk->image ? xasprintf("%s/%s", places->images_dir, order->disk.sha256) : NULL;
    int r = -EXDEV;
    if (layers != NULL)
        r = disk_file_clone(layers, disk->name, disk->size_bytes, image, err);
    return r == -EXDEV ? disk_file_make(raw, disk->size_bytes, image, err) : r;
}

/* For a migration to fill. Where the image cannot be shared because of its size the source has copied it, too, and sends
 * all of it; but one that this host alone cannot share the source believes to be there. */
static int make_disk_empty(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk,
                           struct error *err)
{
    CLEANUP_FREE char *layers = vm_files_layers_path(places, order, disk);
    CLEANUP_FREE char *raw = raw_path(places, order, disk);
    CLEANUP_FREE char *image = disk->image ? xasprintf("%s/%s", places->images_dir, order->disk.sha256) : NULL;
    uint64_t size_bytes = disk->size_bytes;
    struct stat st = {.st_size = 0};
    int r = layers != NULL ? disk_file_clone(layers, disk->name, size_bytes, image, err) : -EXDEV;
    if (r != -EXDEV)
        return r;
    if (image != NULL && stat(image, &st) < 0)
        return error_errno(err, -errno, "cannot open image %s", image);
    uint64_t sectors = ((uint64_t)st.st_size + DISK_SECTOR_BYTES - 1) / DISK_SECTOR_BYTES;
    if (layers != NULL && st.st_size > 0 && sectors * DISK_SECTOR_BYTES == (uint64_t)st.st_size)
        return error_set(err, -EXDEV, ERROR_NOT_SUPPORTED,
                         "%s and the disks are on different file systems here, so that no disk can begin above an image; put "
                         "both on one, or stop the VM and restore it here from a backup", places->images_dir);
    return disk_file_make(raw, size_bytes != 0 ? size_bytes : sectors * DISK_SECTOR_BYTES, NULL, err);
}

static int prepare_disk(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk,
                        bool disks_made, bool arriving, struct error *err)
{
    CLEANUP_FREE char *path = vm_files_disk_path(places, order, disk);
    const struct pool_order *pool = pool_dir_of(order, disk);
    if (disk->pool != NULL && pool == NULL)
        return error_set(err, -EINVAL, ERROR_INTERNAL, "disk %s is in pool %s, which the order does not describe", disk->name,
                         disk->pool);
    if (pool_rbd_is(pool) && disk->volume == NULL)
        return error_set(err, -EINVAL, ERROR_INTERNAL, "disk %s is in pool %s of kind rbd, and no volume", disk->name, pool->name);
    if (pool_rbd_is(pool)) {
        int code = pool_rbd_grow(places->rbd_path, pool, disk->volume, disk->size_bytes, err);
        if (code < 0)
            error_prefix(err, "disk %s: ", disk->name);
        return code;
    }
    if (pool == NULL && (disks_made || (disk->place != NULL && !arriving)) && access(path, F_OK) < 0)
        return error_errno(err, -errno, "disk %s was made once and is missing now: %s", disk->name, path);
    if (disk->image && order->disk.sha256 == NULL)
        return error_set(err, -EFBIG, ERROR_INVALID,
                         "disk %s begins as a copy of the image's disk, and the image has none", disk->name);
    CLEANUP_FREE char *image = disk->image ? xasprintf("%s/%s", places->images_dir, order->disk.sha256) : NULL;
    bool made = disks_made || order->disks_made || disk->volume != NULL || disk->place != NULL; /* such were there before the VM had them */
    bool comes = arriving && disk->arriving; /* made for a migration to fill, above its image */
    int r = pool != NULL ? pool_dir_make_disk(pool, order->id, disk, image, made && !comes, err)
            : arriving && vm_files_disk_moves(disk) ? make_disk_empty(places, order, disk, err)
                                                    : make_disk(places, order, disk, err);
    if (r < 0)
        error_prefix(err, "disk %s: ", disk->name);
    return r;
}

#define PLUGGED ".plugged"
#define PLACE_LENGTH 36u /* an id */

static char *plugged_path(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk)
{
    return xasprintf("%s/%s/disks/%s%s%s" PLUGGED, places->vms_dir, order->id, disk->name, disk->place != NULL ? "." : "",
                     disk->place != NULL ? disk->place : "");
}

int vm_files_show(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk, uid_t user, int pidfd,
                  char **ret_directory, struct error *err)
{
    CLEANUP_FREE char *layers = vm_files_layers_path(places, order, disk);
    CLEANUP_FREE char *plugged = plugged_path(places, order, disk);
    int r = prepare_disk(places, order, disk, true, false, err);
    if (r == 0 && pool_rbd_is(pool_dir_of(order, disk))) { /* its socket is in the VM's own directory, which the VMM sees */
        if ((r = pool_rbd_serve(places, order, user, err)) == 0)
            *ret_directory = vm_files_path(places, order->id, "disks");
        return r;
    }
    if (r == 0 && user != 0)
        r = vmm_user_own_disk(places, order, disk, user, err);
    if (r == 0 && user != 0 && mkdir(plugged, 0700) < 0 && errno != EEXIST)
        r = error_errno(err, -errno, "cannot make %s", plugged);
    if (r == 0 && user != 0)
        r = vmm_mount_show(pidfd, layers, plugged, err);
    if (r == 0)
        *ret_directory = user != 0 ? TAKE_PTR(plugged) : TAKE_PTR(layers);
    return r;
}

int vm_files_hide(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk, uid_t user, int pidfd,
                  struct error *err)
{
    CLEANUP_FREE char *layers = vm_files_layers_path(places, order, disk);
    CLEANUP_FREE char *plugged = plugged_path(places, order, disk);
    const char *const seen[] = {plugged, layers}; /* attached while it ran, or when it was started */
    if (pool_rbd_is(pool_dir_of(order, disk)))
        return pool_rbd_end(places, order->id, disk->name, err);
    if (user == 0)
        return 0;
    int r = vmm_mount_hide(pidfd, seen, ARRAY_SIZE(seen), err);
    if (r == 0 && rmdir(plugged) < 0 && errno != ENOENT)
        r = error_errno(err, -errno, "cannot remove %s", plugged);
    return r;
}

/* Is @leaf where a copy of @disk is shown? */
static bool is_plugged(const char *leaf, const struct vm_disk *disk)
{
    size_t length = strlen(disk->name), size = strlen(leaf), end = strlen(PLUGGED);
    bool has_size = size == length + end || size == length + 1 + PLACE_LENGTH + end; /* another disk may be called as it, and a dot and more */
    return has_size && strncmp(leaf, disk->name, length) == 0 && leaf[length] == '.' && strcmp(leaf + size - end, PLUGGED) == 0;
}

int vm_files_hide_old(const struct vm_places *places, const struct vm_order *order, const char *path, uid_t user, int pidfd,
                      struct error *err)
{
    CLEANUP_FREE char *home = vm_files_path(places, order->id, "");
    CLEANUP_FREE char *directory = xstrdup(path);
    char *slash = strrchr(directory, '/');
    const char *const seen[] = {directory};
    if (user == 0 || slash == NULL || slash == directory || strncmp(path, home, strlen(home)) == 0)
        return 0;
    *slash = '\0';
    return vmm_mount_hide(pidfd, seen, ARRAY_SIZE(seen), err);
}

const char *vm_files_place_of(const struct vm_disk *disk, const char *path, char buffer[37])
{
    static const char *const ends[] = {".layers/", PLUGGED "/"};
    CLEANUP_FREE char *own = xasprintf("/%s.", disk->name);
    CLEANUP_FREE char *volume = disk->volume != NULL ? xasprintf("/volumes/%s.", disk->volume) : NULL;
    const char *at = volume != NULL ? strstr(path, volume) : NULL;
    if (at != NULL && strnlen(at + strlen(volume), PLACE_LENGTH + 1) > PLACE_LENGTH && at[strlen(volume) + PLACE_LENGTH] == '/') {
        snprintf(buffer, 37, "%s", at + strlen(volume));
        return buffer;
    }
    for (at = strstr(path, own); at != NULL; at = strstr(at + 1, own)) {
        const char *from = at + strlen(own);
        for (size_t i = 0; i < ARRAY_SIZE(ends); i++)
            if (strnlen(from, PLACE_LENGTH + 1) > PLACE_LENGTH && strncmp(from + PLACE_LENGTH, ends[i], strlen(ends[i])) == 0) {
                snprintf(buffer, 37, "%s", from);
                return buffer;
            }
    }
    return NULL;
}

int vm_files_hide_others(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk, const char *used,
                         uid_t user, int pidfd, struct error *err)
{
    CLEANUP_FREE char *disks = vm_files_path(places, order->id, "disks");
    CLEANUP_FREE char *kept = plugged_path(places, order, disk);
    struct dirent *entry;
    int r = 0;
    DIR *dir = user != 0 ? opendir(disks) : NULL;
    while (r == 0 && dir != NULL && (entry = readdir(dir)) != NULL) {
        CLEANUP_FREE char *path = xasprintf("%s/%s", disks, entry->d_name);
        const char *const seen[] = {path};
        bool is_used = used != NULL && strncmp(used, path, strlen(path)) == 0 && used[strlen(path)] == '/';
        if (!is_plugged(entry->d_name, disk) || strcmp(path, kept) == 0 || is_used)
            continue;
        r = vmm_mount_hide(pidfd, seen, ARRAY_SIZE(seen), err);
        if (r == 0 && rmdir(path) < 0 && errno != ENOENT)
            r = error_errno(err, -errno, "cannot remove %s", path);
    }
    if (dir != NULL)
        closedir(dir);
    return r;
}

/* Written anew before each start: networks may say something else by now. */
static int prepare_seed(const struct vm_places *places, const struct vm_order *order, struct error *err)
{
    CLEANUP_FREE char *path = vm_files_path(places, order->id, SEED_FILE);
    struct network *networks[TAP_INDEX_MAX + 1] = {NULL};
    const struct network *borrowed[TAP_INDEX_MAX + 1] = {NULL};
    const struct vm_nic *nics = order->nics.items;
    for (size_t i = 0; places->network != NULL && i < order->nics.count; i++)
        borrowed[i] = networks[i] = nics[i].network != NULL ? host_network_find(places->network, nics[i].network) : NULL;
    struct bytes_writer image = {.data = NULL};
    int r = seed_files_image(order, borrowed, &image, err);
    if (r == 0)
        r = file_write_atomic(path, image.data, image.size, 0600, err);
    bytes_writer_finish(&image);
    for (size_t i = 0; i < ARRAY_SIZE(networks); i++)
        if (networks[i] != NULL) {
            OBJECT_CLEAR(network, networks[i]);
            free(networks[i]);
        }
    return r;
}

int vm_files_remove_disks(const struct vm_places *places, const char *vm_id, struct error *err)
{
    CLEANUP_FREE char *dir = vm_files_path(places, vm_id, "");
    return file_remove_tree(dir, "disks", err);
}

/* A copy that a VMM has made is the disk, by the order: no move that is ordered again takes it for one that was only begun. */
static int whole_mark(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk, struct error *err)
{
    const struct pool_order here = pool_dir_here(places->vms_dir);
    const struct pool_order *pool = disk->pool != NULL ? pool_dir_of(order, disk) : &here;
    int r = pool != NULL && disk->place != NULL ? pool_dir_copy_is_whole(pool, order->id, disk, err) : 1;
    return r == 0 ? pool_dir_copy_end(pool, order->id, disk, err) : MIN(r, 0);
}

int vm_files_elsewhere(const struct vm_places *places, const struct vm_order *order, const struct volume_order *was, struct error *err)
{
    const struct pool_order here = pool_dir_here(places->vms_dir);
    const struct pool_order *pool = OBJECT_HAS(volume_order, was, pool) ? &was->pool : &here;
    const struct vm_disk old = {.name = was->disk, .place = was->place}; /* borrowed */
    const struct vm_disk *disks = order->disks.items, *disk = NULL;
    for (size_t i = 0; i < order->disks.count; i++)
        if (disks[i].volume == NULL && strcmp(disks[i].name, was->disk) == 0)
            disk = &disks[i];
    if (disk == NULL || (text_same(disk->place, was->place) && text_same(disk->pool, pool_dir_is_here(pool) ? NULL : pool->name)))
        return 0;
    int r = pool_dir_check(pool, err);
    if (r < 0) {
        error_prefix(err, "disk %s was moved by orders that the cluster has lost in its recovery, and the copy cannot be looked for: ", disk->name);
        return r;
    }
    if (pool_dir_find(pool, order->id, &old, NULL) == -ENOENT)
        return 0;
    CLEANUP_FREE char *there = pool_dir_disk(pool, order->id, &old);
    CLEANUP_FREE char *path = vm_files_disk_path(places, order, disk);
    return error_set(err, -EFBIG, ERROR_CONFLICT,
                     "disk %s was moved by orders that the cluster has lost in its recovery: what was written last is in %s, and the cluster says %s; "
                     "put the one that is to be used in the latter place, remove the other, and start the VM again", disk->name, there, path);
}

int vm_files_prepare(const struct vm_places *places, const struct vm_order *order, uid_t user, bool disks_made, bool arriving,
                     struct error *err)
{
    CLEANUP_FREE char *disks_dir = vm_files_path(places, order->id, "disks");
    const struct vm_disk *disks = order->disks.items;
    int r = disks_made || arriving ? 0 : check_half(places, order->id, err);
    if (r == 0)
        r = file_make_directories(disks_dir, 0700, err);
    if (r == 0 && !disks_made && !arriving && (r = replica_dir_promote(places, order, err)) == -EBUSY)
        r = -EINPROGRESS; /* the point that was under way is being given up */
    for (size_t i = 0; r == 0 && i < order->disks.count; i++)
        r = disks[i].leaving ? 0 : prepare_disk(places, order, &disks[i], disks_made, arriving, err);
    if (r == 0)
        r = pool_rbd_end_others(places, order, err);
    if (r == 0)
        r = pool_rbd_serve(places, order, user, err);
    for (size_t i = 0; r == 0 && !arriving && i < order->disks.count; i++)
        r = disks[i].leaving ? 0 : whole_mark(places, order, &disks[i], err);
    if (r == 0 && seed_files_wanted(order))
        r = prepare_seed(places, order, err);
    return r < 0 ? r : vm_files_network(places, order, user, err);
}

int vm_files_network(const struct vm_places *places, const struct vm_order *order, uid_t user, struct error *err)
{
    const struct vm_nic *nics = order->nics.items;
    int r = 0;
    if (places->throw_away)
        return 0;
    if (places->network != NULL)
        return host_network_plug(places->network, order, user, places->make_bridges, err);
    for (size_t i = 0; r == 0 && i < order->nics.count; i++) {
        char name[TAP_NAME_SIZE];
        tap_name(order->id, nic_number(&nics[i], i), name);
        r = tap_create(name, user, nics[i].bridge, nics[i].queues > 1, places->make_bridges, err);
        if (r < 0)
            error_prefix(err, "network interface %zu: ", i);
    }
    return r;
}

static int remove_taps(const char *vm_id, struct error *err)
{
    for (unsigned i = 0; i <= TAP_INDEX_MAX; i++) {
        char name[TAP_NAME_SIZE];
        tap_name(vm_id, i, name);
        int r = tap_destroy(name, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int remove_from_pools(const struct vm_order *order, bool nobodys, struct error *err)
{
    const struct pool_order *pools = order->pools.items;
    const struct vm_disk *disks = order->disks.items;
    int r = 0;
    for (size_t i = 0; nobodys && r == 0 && i < order->pools.count; i++)
        r = pool_rbd_is(&pools[i]) ? 0 : pool_dir_remove_vm(&pools[i], order->id, err);
    for (size_t i = 0; !nobodys && r == 0 && i < order->disks.count; i++) {
        const struct pool_order *pool = disks[i].volume == NULL ? pool_dir_of(order, &disks[i]) : NULL;
        if (pool != NULL && pool->kind == pool_kind_DIR)
            r = pool_dir_remove_disk(pool, order->id, &disks[i], err);
    }
    return r;
}

int vm_files_remove_unfilled(const struct vm_order *order, struct error *err)
{
    const struct vm_disk *disks = order->disks.items;
    int r = 0;
    for (size_t i = 0; r == 0 && i < order->disks.count; i++) {
        const struct pool_order *pool = disks[i].arriving ? pool_dir_of(order, &disks[i]) : NULL;
        if (pool != NULL && pool->kind == pool_kind_SHARED_DIR)
            r = pool_dir_remove_disk(pool, order->id, &disks[i], err);
    }
    return r;
}

int vm_files_remove(const struct vm_places *places, const char *vm_id, const struct vm_order *pools_of, bool nobodys, struct error *err)
{
    CLEANUP_FREE char *dir = vm_files_path(places, vm_id, "");
    CLEANUP_FREE char *gone = xasprintf("%s" VM_FILES_GONE, dir);
    CLEANUP_FREE char *gone_name = xasprintf("%s" VM_FILES_GONE, vm_id);
    CLEANUP_FREE char *lock_path = vm_files_path(places, vm_id, "vmm.lock");
    char control[VM_FILES_CONTROL_PATH_SIZE];
    CLEANUP_FD int lock_fd = -1;
    bool there = access(dir, F_OK) == 0;
    int r = vm_files_control_path(places, vm_id, control, err);
    if (r == 0 && there)
        r = vmm_process_lock(lock_path, &lock_fd, err); /* before anything that a VMM would miss */
    if (r == 0)
        r = places->network != NULL ? host_network_unplug(places->network, vm_id, err) : remove_taps(vm_id, err);
    if (r < 0)
        return r;
    unlink(control);
    r = pool_rbd_end(places, vm_id, NULL, err);
    if (r < 0)
        return r;
    if (places->cgroups != NULL)
        vmm_cgroup_remove(places->cgroups, vm_id);
    r = pools_of != NULL ? remove_from_pools(pools_of, nobodys, err) : 0;
    if (r < 0)
        return r;
    if (there) {
        r = file_remove_tree(places->vms_dir, gone_name, err);
        if (r < 0)
            return r;
        if (rename(dir, gone) < 0)
            return error_errno(err, -errno, "cannot remove %s", dir);
        r = file_sync_directory(places->vms_dir, err);
        if (r < 0)
            return r;
    }
    return file_remove_tree(places->vms_dir, gone_name, err);
}

void vm_files_remove_leftovers(const struct vm_places *places)
{
    DIR *d = opendir(places->vms_dir);
    struct dirent *entry;
    while (d != NULL && (entry = readdir(d)) != NULL) {
        const char *dot = strrchr(entry->d_name, '.');
        struct error err = {.code = 0};
        if (dot != NULL && strcmp(dot, VM_FILES_GONE) == 0 &&
            file_remove_tree(places->vms_dir, entry->d_name, &err) < 0)
            log_warning("vm-leftovers", "what=%s error=\"%s, ignoring\"", entry->d_name, err.text);
    }
    if (d != NULL)
        closedir(d);
}
