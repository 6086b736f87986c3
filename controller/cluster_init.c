/* Making a cluster. Order: everything that can be refused first, then certificates, Raft log, first command, and
 * identity.json last: a directory without it counts as empty, and the next init begins anew. */
#include "controller/cluster_init.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/file.h"
#include "common/pki.h"
#include "controller/environment.h"
#include "controller/raft/raft_node.h"

int cluster_address(const char *text, unsigned default_port, char ret_address[CLUSTER_ADDRESS_SIZE],
                    struct error *err)
{
    char address[CLUSTER_ADDRESS_SIZE];
    struct in6_addr v6;
    const char *rule = "";
    const char *colon = strrchr(text, ':');
    int n;
    if (inet_pton(AF_INET6, text, &v6) == 1)
        n = snprintf(address, sizeof address, "[%s]:%u", text, default_port);
    else if (colon == NULL || text[strlen(text) - 1] == ']')
        n = snprintf(address, sizeof address, "%s:%u", text, default_port);
    else
        n = snprintf(address, sizeof address, "%s", text);
    if (n < 0 || (size_t)n >= sizeof address || !text_format_ok(FORMAT_address, address, &rule))
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/address", "'%.100s' is not an address: %s", text, rule);
    snprintf(ret_address, CLUSTER_ADDRESS_SIZE, "%s", address);
    return 0;
}

void cluster_address_host(const char *address, char ret_host[CLUSTER_ADDRESS_SIZE])
{
    const char *colon = strrchr(address, ':');
    size_t length = colon != NULL ? (size_t)(colon - address) : strlen(address);
    if (length >= 2 && address[0] == '[' && address[length - 1] == ']') {
        address++;
        length -= 2;
    }
    snprintf(ret_host, CLUSTER_ADDRESS_SIZE, "%.*s", (int)MIN(length, (size_t)CLUSTER_ADDRESS_SIZE - 1), address);
}

const char *cluster_identity(const char *cluster_id, const char *role, const char *id, char uri[256])
{
    snprintf(uri, 256, "spiffe://drover/%s/%s/%s", cluster_id, role, id);
    return uri;
}

/* What goes into a certificate beside the identity: name, hosts of the addresses, loopback. */
struct subject_names {
    char hosts[4][CLUSTER_ADDRESS_SIZE];
    const char *dns[6], *addresses[6];
    size_t dns_count, address_count;
};

static void subject_names_fill(struct subject_names *names, const char *name, const char *const *addresses,
                               size_t count)
{
    names->dns[names->dns_count++] = "localhost";
    names->dns[names->dns_count++] = name;
    names->addresses[names->address_count++] = "127.0.0.1";
    for (size_t i = 0; i < count && i < ARRAY_SIZE(names->hosts); i++) {
        char number[16];
        const char *host = names->hosts[i];
        cluster_address_host(addresses[i], names->hosts[i]);
        if (inet_pton(AF_INET, host, number) == 1 || inet_pton(AF_INET6, host, number) == 1)
            names->addresses[names->address_count++] = host;
        else
            names->dns[names->dns_count++] = host;
    }
}

int cluster_sign(const struct data_dir *dir, const char *cluster_id, const char *role, const char *id,
                 const char *name, const char *const *addresses, size_t address_count, const char *request_pem,
                 char **ret_certificate_pem, struct error *err)
{
    struct subject_names names = {.dns_count = 0};
    char uri[256];
    subject_names_fill(&names, name, addresses, address_count);
    struct pki_subject subject = {.common_name = name,
                                  .uri = cluster_identity(cluster_id, role, id, uri),
                                  .dns_names = names.dns,
                                  .dns_count = names.dns_count,
                                  .addresses = names.addresses,
                                  .address_count = names.address_count,
                                  .valid_days = CLUSTER_CERTIFICATE_DAYS};
    return pki_sign_request(dir->ca_pem, dir->ca_key_pem, request_pem, &subject, ret_certificate_pem, err);
}

static int make_certificates(struct data_dir *dir, const char *cluster_name, struct error *err)
{
    const struct node_identity *me = &dir->identity;
    char ca_name[128];
    char *request CLEANUP_FREE = NULL;
    snprintf(ca_name, sizeof ca_name, "Drover cluster %s", cluster_name);
    int r = pki_create_ca(ca_name, CLUSTER_CA_DAYS, &dir->ca_pem, &dir->ca_key_pem, err);
    if (r < 0 || (r = pki_create_request(&dir->key_pem, &request, err)) < 0)
        return r;
    const char *const addresses[] = {me->address, me->raft_address};
    return cluster_sign(dir, me->cluster_id, "controller", "1", me->name, addresses, 2, request,
                        &dir->certificate_pem, err);
}

/* The first user's certificate, for the CLI: everything in one directory that can be copied away. */
static int save_admin(const struct data_dir *dir, struct error *err)
{
    char path[DATA_DIR_PATH_MAX], uri[256];
    char *certificate CLEANUP_FREE = NULL, *key = NULL;
    struct pki_subject subject = {.common_name = "admin",
                                  .uri = cluster_identity(dir->identity.cluster_id, "user", "admin", uri),
                                  .valid_days = CLUSTER_CERTIFICATE_DAYS};
    int r = pki_issue(dir->ca_pem, dir->ca_key_pem, &subject, &certificate, &key, err);
    if (r < 0)
        return r;
    if ((r = file_make_directories(data_dir_file(dir, "admin", path), 0700, err)) == 0 &&
        (r = pki_save_certificate(data_dir_file(dir, "admin/ca.pem", path), dir->ca_pem, err)) == 0 &&
        (r = pki_save_certificate(data_dir_file(dir, "admin/cert.pem", path), certificate, err)) == 0)
        r = pki_save_key(data_dir_file(dir, "admin/key.pem", path), key, err);
    pki_free_secret(key);
    return r;
}

/* init.json: the command that the first run proposes. */
static int save_first_command(const struct data_dir *dir, const char *cluster_name, struct error *err)
{
    const struct node_identity *me = &dir->identity;
    struct command_init command = {.head = {0}};
    char at[ENVIRONMENT_TIME_SIZE], path[DATA_DIR_PATH_MAX];
    environment_time_text(environment_unix_ms(), at);
    object_mark(&command_init_desc, &command, "request");
    object_mark(&command_init_desc, &command, "cluster");
    object_mark(&command_init_desc, &command, "controller");
    OBJECT_TEXT(command_request, &command.request, at, at);
    OBJECT_TEXT(command_request, &command.request, by, "drover-controller init");
    OBJECT_TEXT(cluster, &command.cluster, id, me->cluster_id);
    OBJECT_TEXT(cluster, &command.cluster, name, cluster_name);
    OBJECT_TEXT(cluster, &command.cluster, created_at, at);
    OBJECT_SET(cluster, &command.cluster, epoch, 1);
    OBJECT_SET(cluster, &command.cluster, lease_ttl_ms, CLUSTER_LEASE_TTL_MS);
    OBJECT_SET(cluster, &command.cluster, next_raft_id, 2);
    OBJECT_TEXT(controller, &command.controller, id, me->id);
    OBJECT_TEXT(controller, &command.controller, name, me->name);
    OBJECT_TEXT(controller, &command.controller, created_at, at);
    OBJECT_SET(controller, &command.controller, raft_id, me->raft_id);
    OBJECT_TEXT(controller, &command.controller, address, me->address);
    OBJECT_TEXT(controller, &command.controller, raft_address, me->raft_address);
    OBJECT_SET(controller, &command.controller, role, controller_role_VOTER);
    int r = object_validate(&command_init_desc, &command, OBJECT_STORED, err);
    if (r == 0) {
        struct bytes_writer json = {0};
        OBJECT_ENCODE(command_init, &command, &json);
        r = file_write_atomic(data_dir_file(dir, "init.json", path), json.data, json.size, 0600, err);
        bytes_writer_finish(&json);
    }
    OBJECT_CLEAR(command_init, &command);
    return r;
}

static int fill_identity(struct node_identity *me, const struct cluster_init_options *options, struct error *err)
{
    char address[CLUSTER_ADDRESS_SIZE], raft_address[CLUSTER_ADDRESS_SIZE], host[CLUSTER_ADDRESS_SIZE];
    char id[ENVIRONMENT_UUID_SIZE];
    int r = cluster_address(options->address, CLUSTER_API_PORT, address, err);
    if (r < 0)
        return r;
    cluster_address_host(address, host);
    r = cluster_address(options->raft_address ? options->raft_address : host, CLUSTER_RAFT_PORT, raft_address, err);
    if (r < 0)
        return r;
    OBJECT_SET(node_identity, me, format, 1);
    OBJECT_SET(node_identity, me, role, role_CONTROLLER);
    environment_uuid(id);
    OBJECT_TEXT(node_identity, me, cluster_id, id);
    environment_uuid(id);
    OBJECT_TEXT(node_identity, me, id, id);
    OBJECT_TEXT(node_identity, me, name, options->name);
    OBJECT_TEXT(node_identity, me, address, address);
    OBJECT_TEXT(node_identity, me, raft_address, raft_address);
    OBJECT_SET(node_identity, me, raft_id, 1);
    OBJECT_SET(node_identity, me, epoch, 1);
    return object_validate(&node_identity_desc, me, OBJECT_STORED, err);
}

int cluster_init(struct data_dir *dir, const struct cluster_init_options *options, struct error *err)
{
    const char *cluster_name = options->cluster_name ? options->cluster_name : "drover", *rule;
    char path[DATA_DIR_PATH_MAX];
    if (data_dir_has_identity(dir))
        return error_set(err, -EEXIST, ERROR_EXISTS, "%s belongs to a cluster already", dir->path);
    if (!text_format_ok(FORMAT_name, cluster_name, &rule) || strlen(cluster_name) > 63)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/cluster-name", "'%.63s': %s", cluster_name, rule);
    int r = fill_identity(&dir->identity, options, err);
    if (r < 0)
        return r;
    /* What an init that was broken off left behind; without identity.json it was never a cluster. */
    if ((r = file_remove_tree(dir->path, "raft", err)) < 0 ||
        (r = file_make_directories(data_dir_file(dir, "raft", path), 0700, err)) < 0 ||
        (r = raft_node_bootstrap(path, dir->identity.raft_id, dir->identity.raft_address, err)) < 0)
        return r;
    if ((r = make_certificates(dir, cluster_name, err)) < 0 || (r = save_admin(dir, err)) < 0 ||
        (r = save_first_command(dir, cluster_name, err)) < 0)
        return r;
    return data_dir_save(dir, err);
}
