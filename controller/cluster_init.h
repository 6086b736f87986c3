/* Making a cluster: CA, the first controller's certificate, the first user's certificate, a Raft log with one voter,
 * and the first command, which the first `run` proposes. Offline and blocking. */
#ifndef CONTROLLER_CLUSTER_INIT_H
#define CONTROLLER_CLUSTER_INIT_H

#include "controller/data_dir.h"

#define CLUSTER_API_PORT 7443
#define CLUSTER_RAFT_PORT 7444
#define CLUSTER_LEASE_TTL_MS 5000
#define CLUSTER_CA_DAYS 3650
#define CLUSTER_CERTIFICATE_DAYS 825
#define CLUSTER_ADDRESS_SIZE 256

struct cluster_init_options {
    const char *name;         /* of this controller */
    const char *address;      /* "host" or "host:port" */
    const char *raft_address; /* NULL: the host of address, port 7444 */
    const char *cluster_name; /* NULL: "drover" */
};

/* Turn the open directory @dir into the first controller of a new cluster. -EEXIST: it belongs to a cluster already
 * (nothing was touched). */
int cluster_init(struct data_dir *dir, const struct cluster_init_options *options, struct error *err);

/* "host" or "host:port" as "host:port"; an IPv6 address without a port needs no brackets. -EINVAL with words. */
int cluster_address(const char *text, unsigned default_port, char ret_address[CLUSTER_ADDRESS_SIZE],
                    struct error *err);
/* The host part of "host:port", without brackets. */
void cluster_address_host(const char *address, char ret_host[CLUSTER_ADDRESS_SIZE]);
/* A certificate's identity: spiffe://drover/<cluster id>/<role>/<id>; returns @uri. */
const char *cluster_identity(const char *cluster_id, const char *role, const char *id, char uri[256]);
/* Sign @request_pem for @role of the cluster; @name and the hosts of the @addresses go into it too. */
int cluster_sign(const struct data_dir *dir, const char *cluster_id, const char *role, const char *id,
                 const char *name, const char *const *addresses, size_t address_count, const char *request_pem,
                 char **ret_certificate_pem, struct error *err);

#endif
