/* Reading and writing of a controller's data directory; its layout is in the header. */
#include "controller/data_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>

#include "common/file.h"
#include "common/log.h"
#include "common/pki.h"

const char *data_dir_file(const struct data_dir *dir, const char *name, char buffer[DATA_DIR_PATH_MAX])
{
    snprintf(buffer, DATA_DIR_PATH_MAX, "%s/%s", dir->path, name);
    return buffer;
}

int data_dir_open(const char *path, struct data_dir *ret_dir, struct error *err)
{
    char lock_path[DATA_DIR_PATH_MAX];
    if (strlen(path) > DATA_DIR_PATH_MAX - 64)
        return error_set(err, -ENAMETOOLONG, ERROR_INVALID, "the path of the data directory is too long");
    int r = file_make_directories(path, 0700, err);
    if (r < 0)
        return r;
    struct data_dir dir = {.path = xstrdup(path), .lock_fd = -1};
    dir.lock_fd = open(data_dir_file(&dir, "lock", lock_path), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (dir.lock_fd < 0)
        r = error_errno(err, -errno, "cannot open %s", lock_path);
    else if (flock(dir.lock_fd, LOCK_EX | LOCK_NB) < 0)
        r = error_set(err, -EBUSY, ERROR_CONFLICT, "another drover-controller works in %s; stop it first", path);
    if (r < 0) {
        data_dir_close(&dir);
        return r;
    }
    *ret_dir = dir;
    return 0;
}

bool data_dir_has_identity(const struct data_dir *dir)
{
    char path[DATA_DIR_PATH_MAX];
    return access(data_dir_file(dir, "identity.json", path), F_OK) == 0;
}

static int read_text(const struct data_dir *dir, const char *name, char **ret_text, struct error *err)
{
    char path[DATA_DIR_PATH_MAX];
    return file_read(data_dir_file(dir, name, path), DATA_DIR_FILE_BYTES_MAX, ret_text, NULL, err);
}

uint64_t data_dir_epoch(const struct data_dir *dir)
{
    return MAX(dir->identity.epoch, 1u);
}

static int superseded(const struct data_dir *dir, struct error *err)
{
    return error_set(err, -ESTALE, ERROR_CONFLICT,
                     "controller %s is of epoch %llu of the cluster, which was recovered without it and is at epoch %llu; "
                     "wipe %s and join again (where nobody has recovered it: drover-controller recover --superseded)",
                     dir->identity.name, (unsigned long long)data_dir_epoch(dir),
                     (unsigned long long)dir->identity.superseded_by, dir->path);
}

int data_dir_supersede(struct data_dir *dir, uint64_t epoch, struct error *err)
{
    struct error ignored;
    OBJECT_SET(node_identity, &dir->identity, superseded_by, epoch);
    if (data_dir_save_identity(dir, &ignored) < 0)
        log_warning("identity-save", "error=\"%s, ignoring\"", ignored.text);
    return superseded(dir, err);
}

int data_dir_check_superseded(const struct data_dir *dir, struct error *err)
{
    return dir->identity.superseded_by > data_dir_epoch(dir) ? superseded(dir, err) : 0;
}

int data_dir_load(struct data_dir *dir, struct error *err)
{
    int r = data_dir_load_superseded(dir, err);
    return r == 0 ? data_dir_check_superseded(dir, err) : r;
}

int data_dir_load_superseded(struct data_dir *dir, struct error *err)
{
    if (!data_dir_has_identity(dir))
        return error_set(err, -ENOENT, ERROR_NOT_INITIALIZED,
                         "%s belongs to no cluster; run `drover-controller init` or `drover-controller join` first",
                         dir->path);
    char *text CLEANUP_FREE = NULL;
    int r = read_text(dir, "identity.json", &text, err);
    if (r < 0)
        return r;
    r = OBJECT_DECODE(node_identity, text, strlen(text), OBJECT_STORED, &dir->identity, err);
    if (r < 0) {
        error_prefix(err, "%s/identity.json: ", dir->path);
        return r;
    }
    if (dir->identity.role != role_CONTROLLER || dir->identity.raft_id == 0 || dir->identity.raft_address == NULL)
        return error_set(err, -EINVAL, ERROR_INVALID, "%s/identity.json is not a controller's", dir->path);
    if ((r = read_text(dir, "ca.pem", &dir->ca_pem, err)) < 0 ||
        (r = read_text(dir, "ca.key", &dir->ca_key_pem, err)) < 0 ||
        (r = read_text(dir, "cert.pem", &dir->certificate_pem, err)) < 0)
        return r;
    return read_text(dir, "key.pem", &dir->key_pem, err);
}

int data_dir_save(const struct data_dir *dir, struct error *err)
{
    char path[DATA_DIR_PATH_MAX];
    int r;
    if ((r = pki_save_certificate(data_dir_file(dir, "ca.pem", path), dir->ca_pem, err)) < 0 ||
        (r = pki_save_key(data_dir_file(dir, "ca.key", path), dir->ca_key_pem, err)) < 0 ||
        (r = pki_save_certificate(data_dir_file(dir, "cert.pem", path), dir->certificate_pem, err)) < 0 ||
        (r = pki_save_key(data_dir_file(dir, "key.pem", path), dir->key_pem, err)) < 0 ||
        (r = file_make_directories(data_dir_file(dir, "raft", path), 0700, err)) < 0)
        return r;
    return data_dir_save_identity(dir, err);
}

int data_dir_save_identity(const struct data_dir *dir, struct error *err)
{
    char path[DATA_DIR_PATH_MAX];
    struct bytes_writer json = {0};
    OBJECT_ENCODE(node_identity, &dir->identity, &json);
    int r = file_write_atomic(data_dir_file(dir, "identity.json", path), json.data, json.size, 0600, err);
    bytes_writer_finish(&json);
    return r;
}

void data_dir_close(struct data_dir *dir)
{
    if (dir->path == NULL)
        return;
    OBJECT_CLEAR(node_identity, &dir->identity);
    free(dir->ca_pem);
    free(dir->certificate_pem);
    pki_free_secret(dir->ca_key_pem);
    pki_free_secret(dir->key_pem);
    free(dir->path);
    if (dir->lock_fd >= 0)
        close(dir->lock_fd);
    *dir = (struct data_dir){.lock_fd = -1};
}
