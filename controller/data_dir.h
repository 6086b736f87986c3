/* A controller's data directory:
 *
 *   identity.json                    who this controller is (schema: node_identity); written last by init and join
 *   ca.pem ca.key cert.pem key.pem   the cluster's CA and this controller's certificate
 *   raft/                            log and snapshots (controller/raft)
 *   init.json                        the first command of a new cluster, until it has been committed
 *   recover.json                     the first command of a recovered cluster (cluster_recover.h), likewise
 *   admin/                           after init: certificate of the first user
 *   lock                             held while a program works in the directory
 *
 * All of it is readable by its owner alone. Blocking; used at start and by init and join only. */
#ifndef CONTROLLER_DATA_DIR_H
#define CONTROLLER_DATA_DIR_H

#include "schema/objects.h"

#define DATA_DIR_FILE_BYTES_MAX (256u * 1024)
#define DATA_DIR_PATH_MAX 4096

struct data_dir {
    char *path;
    int lock_fd;
    struct node_identity identity; /* has an id only where the directory belongs to a cluster */
    char *ca_pem, *ca_key_pem, *certificate_pem, *key_pem;
};

/* Make the directory where there is none and take its lock. -EBUSY: another program works in it. */
int data_dir_open(const char *path, struct data_dir *ret_dir, struct error *err);
/* Does it hold the identity of a cluster's controller? */
bool data_dir_has_identity(const struct data_dir *dir);
/* Read identity, certificates and keys. -ENOENT: the directory belongs to no cluster. -ESTALE: the cluster goes on
 * without this controller (data_dir_supersede). */
int data_dir_load(struct data_dir *dir, struct error *err);
/* The same, also of one that was told so: for a recovery that takes it nevertheless. */
int data_dir_load_superseded(struct data_dir *dir, struct error *err);
/* -ESTALE: it was. */
int data_dir_check_superseded(const struct data_dir *dir, struct error *err);
/* Write what is in @dir; identity.json comes last, so that a broken-off call leaves no half member behind. */
int data_dir_save(const struct data_dir *dir, struct error *err);
int data_dir_save_identity(const struct data_dir *dir, struct error *err);
/* Epoch of the cluster that the directory belongs to, from 1. */
uint64_t data_dir_epoch(const struct data_dir *dir);
/* The cluster was recovered without this controller and is at @epoch: say so in the directory, for good. Fills @err with
 * the words for it, those of a later data_dir_load. Always negative. */
int data_dir_supersede(struct data_dir *dir, uint64_t epoch, struct error *err);
/* Path of @name inside; returns @buffer. */
const char *data_dir_file(const struct data_dir *dir, const char *name, char buffer[DATA_DIR_PATH_MAX]);
void data_dir_close(struct data_dir *dir); /* zeroed is fine */

#endif
