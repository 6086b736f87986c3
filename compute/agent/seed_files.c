/* cloud-init's files, in JSON where a value is the user's: every JSON string is a YAML one. */
#include "compute/agent/seed_files.h"

#include <string.h>

#include "common/ip_address.h"
#include "common/object.h"
#include "compute/agent/seed_image.h"

bool seed_files_wanted(const struct vm_order *order)
{
    return order->hostname != NULL || order->ssh_keys != NULL || order->user_data != NULL;
}

/* `key: "text"` */
static void put_pair(struct bytes_writer *out, const char *indent, const char *key, const char *text)
{
    bytes_put_format(out, "%s%s: ", indent, key);
    json_put_string(out, text);
    bytes_put_text(out, "\n");
}

static void put_item(struct bytes_writer *out, const char *indent, const char *text)
{
    bytes_put_format(out, "%s- ", indent);
    json_put_string(out, text);
    bytes_put_text(out, "\n");
}

/* A line of @keys each; empty ones and comments are passed over. */
static void put_keys(struct bytes_writer *out, const char *keys)
{
    CLEANUP_FREE char *copy = xstrdup(keys);
    char *rest = NULL;
    bool any = false;
    for (char *line = strtok_r(copy, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest)) {
        line += strspn(line, " \t");
        if (*line == '\0' || *line == '#')
            continue;
        if (!any)
            bytes_put_text(out, "public-keys:\n");
        any = true;
        put_item(out, "  ", line);
    }
}

void seed_files_meta_data(const struct vm_order *order, struct bytes_writer *out)
{
    put_pair(out, "", "instance-id", order->id);
    put_pair(out, "", "local-hostname", order->hostname != NULL ? order->hostname : order->name);
    if (order->ssh_keys != NULL)
        put_keys(out, order->ssh_keys);
}

void seed_files_user_data(const struct vm_order *order, struct bytes_writer *out)
{
    bytes_put_text(out, order->user_data != NULL ? order->user_data : "#cloud-config\n{}\n");
}

static unsigned bits_of(const struct network *network, unsigned family)
{
    struct ip_prefix subnet;
    const char *text = network == NULL ? NULL : family == 4 ? network->ipv4_subnet : network->ipv6_subnet;
    return text != NULL && ip_prefix_parse(text, &subnet) ? subnet.bits : family == 4 ? 32 : 128;
}

static void put_addresses(struct bytes_writer *out, const struct vm_nic *nic, const struct network *network)
{
    struct ip_address ip;
    bytes_put_text(out, "    addresses:\n");
    for (size_t i = 0; i < nic->ips.count; i++)
        if (ip_parse(nic->ips.items[i], &ip))
            bytes_put_format(out, "      - \"%s/%u\"\n", nic->ips.items[i], bits_of(network, ip.family));
}

static bool has_family(const struct vm_nic *nic, unsigned family)
{
    struct ip_address ip;
    for (size_t i = 0; i < nic->ips.count; i++)
        if (ip_parse(nic->ips.items[i], &ip) && ip.family == family)
            return true;
    return false;
}

/* Default routes as prefixes: every renderer of cloud-init knows those, and netplan warns of gateway4. */
static void put_routes(struct bytes_writer *out, const struct vm_nic *nic, const struct network *network)
{
    const char *gateways[] = {has_family(nic, 4) ? network->ipv4_gateway : NULL,
                              has_family(nic, 6) ? network->ipv6_gateway : NULL};
    static const char *const all[] = {"0.0.0.0/0", "::/0"};
    if (gateways[0] != NULL || gateways[1] != NULL)
        bytes_put_text(out, "    routes:\n");
    for (unsigned i = 0; i < ARRAY_SIZE(gateways); i++)
        if (gateways[i] != NULL)
            bytes_put_format(out, "      - to: \"%s\"\n        via: \"%s\"\n", all[i], gateways[i]);
}

static void put_nic(struct bytes_writer *out, size_t index, const struct vm_nic *nic, const struct network *network)
{
    bytes_put_format(out, "  nic%zu:\n    match:\n", index);
    put_pair(out, "      ", "macaddress", nic->mac != NULL ? nic->mac : "");
    if (nic->ips.count == 0) {
        bytes_put_text(out, "    dhcp4: true\n");
        return;
    }
    put_addresses(out, nic, network);
    if (network == NULL)
        return;
    put_routes(out, nic, network);
    if (network->mtu != 0)
        bytes_put_format(out, "    mtu: %u\n", network->mtu);
    if (network->dns_servers.count > 0)
        bytes_put_text(out, "    nameservers:\n      addresses:\n");
    for (size_t i = 0; i < network->dns_servers.count; i++)
        put_item(out, "        ", network->dns_servers.items[i]);
}

void seed_files_network_config(const struct vm_order *order, const struct network *const *networks, struct bytes_writer *out)
{
    const struct vm_nic *nics = order->nics.items;
    bytes_put_text(out, "version: 2\nethernets:");
    bytes_put_text(out, order->nics.count == 0 ? " {}\n" : "\n");
    for (size_t i = 0; i < order->nics.count; i++)
        put_nic(out, i, &nics[i], networks[i]);
}

int seed_files_image(const struct vm_order *order, const struct network *const *networks, struct bytes_writer *out, struct error *err)
{
    struct bytes_writer texts[3] = {{0}};
    static const char *const names[] = {"meta-data", "user-data", "network-config"};
    struct seed_image_file files[ARRAY_SIZE(names)];
    seed_files_meta_data(order, &texts[0]);
    seed_files_user_data(order, &texts[1]);
    seed_files_network_config(order, networks, &texts[2]);
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        files[i] = (struct seed_image_file){names[i], texts[i].data, texts[i].size};
    int r = seed_image_make("CIDATA", files, ARRAY_SIZE(files), out);
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        bytes_writer_finish(&texts[i]);
    return r < 0 ? error_set(err, r, ERROR_INVALID, "user_data and ssh_keys are too much for a seed disk") : 0;
}
