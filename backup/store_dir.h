/* A store that is a directory: of this host, or one that is mounted here (NFS, CephFS).
 *
 * An object is a file. put writes ".tmp-<random>" beside it, syncs it, renames it into place and syncs the folder: on
 * NFS too, rename replaces at once for every client. No locks, no hard links, no times of access are used. Folders
 * are made where they are needed and stay.
 *
 * Once STORE_SIGN was seen in the directory, each call looks for it again where it would make, list, miss or remove something: a share
 * that goes away in the middle of a backup, a collection or a verification is -EHOSTUNREACH (UNREACHABLE). Else the backup would go on in
 * the empty directory below, a collection would find no backup that needs anything, and a verification would call all of it lost. */
#ifndef BACKUP_STORE_DIR_H
#define BACKUP_STORE_DIR_H

#include "backup/store.h"

/* @path is absolute; it need not be there before the first put. */
int store_dir_create(const char *path, struct store **ret_store, struct error *err);

#endif
