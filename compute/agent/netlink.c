/* rtnetlink messages with libmnl; see the header. The kernel's own words (NETLINK_EXT_ACK) go into the errors. */
#include "compute/agent/netlink.h"

#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define MESSAGE_BYTES_MAX 1024u
#define ANSWER_BYTES_MAX 32768u /* of one recvmsg: the kernel fills pages with messages */
#define ADDR_GEN_NONE 1u        /* IN6_ADDR_GEN_MODE_NONE, linux/if_link.h */

int netlink_open(struct netlink *nl, struct error *err)
{
    int one = 1;
    nl->sequence = 0;
    nl->socket = mnl_socket_open2(NETLINK_ROUTE, SOCK_CLOEXEC);
    if (nl->socket == NULL || mnl_socket_bind(nl->socket, 0, MNL_SOCKET_AUTOPID) < 0) {
        int r = -errno;
        netlink_close(nl);
        return error_errno(err, r, "cannot speak to the kernel's network configuration");
    }
    /* words with refusals, without the whole request in them; older kernels do without */
    mnl_socket_setsockopt(nl->socket, NETLINK_EXT_ACK, &one, sizeof(one));
    mnl_socket_setsockopt(nl->socket, NETLINK_CAP_ACK, &one, sizeof(one));
    return 0;
}

void netlink_close(struct netlink *nl)
{
    if (nl->socket != NULL)
        mnl_socket_close(nl->socket);
    nl->socket = NULL;
}

/* ---- asking ---- */

static int take_words(const struct nlattr *attribute, void *arg)
{
    if (mnl_attr_get_type(attribute) == NLMSGERR_ATTR_MSG && mnl_attr_validate(attribute, MNL_TYPE_NUL_STRING) >= 0)
        *(const char **)arg = mnl_attr_get_str(attribute);
    return MNL_CB_OK;
}

/* The outcome that @answer, a NLMSG_ERROR, tells; *ret_words point into it, or are NULL. */
static int outcome(const struct nlmsghdr *answer, const char **ret_words)
{
    const struct nlmsgerr *error = mnl_nlmsg_get_payload(answer);
    size_t offset = sizeof(*error);
    if (mnl_nlmsg_get_payload_len(answer) < sizeof(*error))
        return -EBADMSG;
    if (!(answer->nlmsg_flags & NLM_F_CAPPED) && error->msg.nlmsg_len > sizeof(error->msg))
        offset += error->msg.nlmsg_len - sizeof(error->msg);
    if ((answer->nlmsg_flags & NLM_F_ACK_TLVS) != 0 && offset <= mnl_nlmsg_get_payload_len(answer))
        mnl_attr_parse(answer, (unsigned)offset, take_words, ret_words);
    return error->error;
}

/* Send @request and hand every message of the answer to @each until its end. Negative: the kernel's refusal. */
static int ask(struct netlink *nl, struct nlmsghdr *request, void (*each)(const struct nlmsghdr *, void *), void *arg,
               char *ret_words, size_t words_size)
{
    CLEANUP_FREE char *buffer = xcalloc(1, ANSWER_BYTES_MAX);
    const char *words = NULL;
    ret_words[0] = '\0';
    request->nlmsg_seq = ++nl->sequence;
    if (mnl_socket_sendto(nl->socket, request, request->nlmsg_len) < 0)
        return -errno;
    for (;;) {
        ssize_t n = mnl_socket_recvfrom(nl->socket, buffer, ANSWER_BYTES_MAX);
        if (n <= 0)
            return n < 0 ? -errno : -EPIPE;
        int left = (int)n;
        for (struct nlmsghdr *m = (void *)buffer; mnl_nlmsg_ok(m, left); m = mnl_nlmsg_next(m, &left)) {
            if (m->nlmsg_seq != nl->sequence)
                continue; /* of a question that was given up */
            if (m->nlmsg_type == NLMSG_DONE)
                return 0;
            if (m->nlmsg_type == NLMSG_ERROR) {
                int r = outcome(m, &words);
                snprintf(ret_words, words_size, "%s", words != NULL ? words : "");
                return r;
            }
            if (each != NULL)
                each(m, arg);
            if ((request->nlmsg_flags & (NLM_F_DUMP | NLM_F_ACK)) == 0)
                return 0;
        }
    }
}

static struct nlmsghdr *link_request(char *buffer, uint16_t type, uint16_t flags, struct ifinfomsg **ret_info)
{
    struct nlmsghdr *request = mnl_nlmsg_put_header(buffer);
    request->nlmsg_type = type;
    request->nlmsg_flags = NLM_F_REQUEST | flags;
    *ret_info = mnl_nlmsg_put_extra_header(request, sizeof(**ret_info));
    (*ret_info)->ifi_family = AF_UNSPEC;
    return request;
}

/* A request that changes something. */
static int tell(struct netlink *nl, struct nlmsghdr *request, const char *what, const char *name, struct error *err)
{
    char words[200];
    request->nlmsg_flags |= NLM_F_ACK;
    int r = ask(nl, request, NULL, NULL, words, sizeof(words));
    if (r < 0 && words[0] != '\0')
        return error_set(err, r, ERROR_INTERNAL, "cannot %s %s: %s: %s", what, name, strerror(-r), words);
    return r < 0 ? error_errno(err, r, "cannot %s %s", what, name) : 0;
}

/* ---- looking ---- */

static int put_attribute(const struct nlattr *attribute, void *arg)
{
    const struct nlattr **table = arg;
    unsigned type = mnl_attr_get_type(attribute);
    if (type <= IFLA_MAX)
        table[type] = attribute;
    return MNL_CB_OK;
}

static void take_text(const struct nlattr *attribute, char *buffer, size_t size)
{
    buffer[0] = '\0';
    if (attribute != NULL && mnl_attr_validate(attribute, MNL_TYPE_NUL_STRING) >= 0)
        snprintf(buffer, size, "%s", mnl_attr_get_str(attribute));
}

static uint32_t take_u32(const struct nlattr *attribute)
{
    return attribute != NULL && mnl_attr_validate(attribute, MNL_TYPE_U32) >= 0 ? mnl_attr_get_u32(attribute) : 0;
}

static void take_kind(const struct nlattr *nest, struct netlink_link *link)
{
    const struct nlattr *info[IFLA_MAX + 1] = {NULL}, *vlan[IFLA_MAX + 1] = {NULL};
    if (nest == NULL || mnl_attr_parse_nested(nest, put_attribute, info) < 0)
        return;
    take_text(info[IFLA_INFO_KIND], link->kind, sizeof(link->kind));
    if (strcmp(link->kind, "vlan") != 0 || info[IFLA_INFO_DATA] == NULL ||
        mnl_attr_parse_nested(info[IFLA_INFO_DATA], put_attribute, vlan) < 0)
        return;
    const struct nlattr *id = vlan[IFLA_VLAN_ID];
    link->vlan = id != NULL && mnl_attr_validate(id, MNL_TYPE_U16) >= 0 ? mnl_attr_get_u16(id) : 0;
}

static void take_link(const struct nlmsghdr *message, struct netlink_link *ret)
{
    const struct ifinfomsg *info = mnl_nlmsg_get_payload(message);
    const struct nlattr *table[IFLA_MAX + 1] = {NULL};
    struct netlink_link link = {.index = info->ifi_index, .up = (info->ifi_flags & IFF_UP) != 0};
    mnl_attr_parse(message, sizeof(*info), put_attribute, table);
    take_text(table[IFLA_IFNAME], link.name, sizeof(link.name));
    take_text(table[IFLA_IFALIAS], link.alias, sizeof(link.alias));
    link.mtu = take_u32(table[IFLA_MTU]);
    link.master = (int)take_u32(table[IFLA_MASTER]);
    link.lower = (int)take_u32(table[IFLA_LINK]);
    take_kind(table[IFLA_LINKINFO], &link);
    *ret = link;
}

static void on_link(const struct nlmsghdr *message, void *arg)
{
    if (message->nlmsg_type == RTM_NEWLINK && mnl_nlmsg_get_payload_len(message) >= sizeof(struct ifinfomsg))
        take_link(message, arg);
}

int netlink_look(struct netlink *nl, const char *name, struct netlink_link *ret)
{
    char buffer[MESSAGE_BYTES_MAX], words[8];
    struct ifinfomsg *info;
    struct netlink_link link = {.index = 0};
    struct nlmsghdr *request = link_request(buffer, RTM_GETLINK, 0, &info);
    mnl_attr_put_strz(request, IFLA_IFNAME, name);
    int r = ask(nl, request, on_link, &link, words, sizeof(words));
    if (r < 0 || link.index == 0)
        return r < 0 ? r : -ENODEV;
    *ret = link;
    return 0;
}

struct listing {
    struct netlink_link *links;
    size_t count, capacity;
};

static void on_listed(const struct nlmsghdr *message, void *arg)
{
    struct listing *list = arg;
    if (message->nlmsg_type != RTM_NEWLINK || mnl_nlmsg_get_payload_len(message) < sizeof(struct ifinfomsg))
        return;
    if (list->count == list->capacity) {
        list->capacity = MAX(list->capacity * 2, (size_t)32);
        list->links = xrealloc(list->links, list->capacity * sizeof(*list->links));
    }
    take_link(message, &list->links[list->count++]);
}

int netlink_list(struct netlink *nl, struct netlink_link **ret_links, size_t *ret_count, struct error *err)
{
    char buffer[MESSAGE_BYTES_MAX], words[8];
    struct ifinfomsg *info;
    struct listing list = {.links = NULL};
    struct nlmsghdr *request = link_request(buffer, RTM_GETLINK, NLM_F_DUMP, &info);
    int r = ask(nl, request, on_listed, &list, words, sizeof(words));
    if (r < 0) {
        free(list.links);
        return error_errno(err, r, "cannot list the network interfaces");
    }
    *ret_links = list.links;
    *ret_count = list.count;
    return 0;
}

struct address_question {
    int index;
    bool found;
};

static void on_address(const struct nlmsghdr *message, void *arg)
{
    struct address_question *question = arg;
    const struct ifaddrmsg *address = mnl_nlmsg_get_payload(message);
    if (message->nlmsg_type == RTM_NEWADDR && mnl_nlmsg_get_payload_len(message) >= sizeof(*address) &&
        (int)address->ifa_index == question->index && address->ifa_scope < RT_SCOPE_LINK)
        question->found = true;
}

int netlink_has_address(struct netlink *nl, int index, bool *ret, struct error *err)
{
    char buffer[MESSAGE_BYTES_MAX], words[8];
    struct address_question question = {index, false};
    struct nlmsghdr *request = mnl_nlmsg_put_header(buffer);
    request->nlmsg_type = RTM_GETADDR;
    request->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
    mnl_nlmsg_put_extra_header(request, sizeof(struct ifaddrmsg));
    int r = ask(nl, request, on_address, &question, words, sizeof(words));
    if (r < 0)
        return error_errno(err, r, "cannot list the addresses of this host");
    *ret = question.found;
    return 0;
}

/* ---- making and changing ---- */

/* No link-local address, so that the interface itself neither speaks nor listens. */
static void put_quiet(struct nlmsghdr *request)
{
    struct nlattr *families = mnl_attr_nest_start(request, IFLA_AF_SPEC);
    struct nlattr *inet6 = mnl_attr_nest_start(request, AF_INET6);
    mnl_attr_put_u8(request, IFLA_INET6_ADDR_GEN_MODE, ADDR_GEN_NONE);
    mnl_attr_nest_end(request, inet6);
    mnl_attr_nest_end(request, families);
}

int netlink_bridge_make(struct netlink *nl, const char *name, uint32_t mtu, struct error *err)
{
    char buffer[MESSAGE_BYTES_MAX];
    struct ifinfomsg *info;
    struct nlmsghdr *request = link_request(buffer, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &info);
    mnl_attr_put_strz(request, IFLA_IFNAME, name);
    mnl_attr_put_u32(request, IFLA_MTU, mtu);
    struct nlattr *nest = mnl_attr_nest_start(request, IFLA_LINKINFO);
    mnl_attr_put_strz(request, IFLA_INFO_KIND, "bridge");
    struct nlattr *data = mnl_attr_nest_start(request, IFLA_INFO_DATA);
    mnl_attr_put_u8(request, IFLA_BR_MCAST_SNOOPING, 0); /* there may be nobody to ask who listens */
    mnl_attr_nest_end(request, data);
    mnl_attr_nest_end(request, nest);
    return tell(nl, request, "make bridge", name, err);
}

int netlink_vlan_make(struct netlink *nl, const char *name, int lower, uint16_t id, struct error *err)
{
    char buffer[MESSAGE_BYTES_MAX];
    struct ifinfomsg *info;
    struct nlmsghdr *request = link_request(buffer, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &info);
    mnl_attr_put_strz(request, IFLA_IFNAME, name);
    mnl_attr_put_u32(request, IFLA_LINK, (uint32_t)lower);
    struct nlattr *nest = mnl_attr_nest_start(request, IFLA_LINKINFO);
    mnl_attr_put_strz(request, IFLA_INFO_KIND, "vlan");
    struct nlattr *data = mnl_attr_nest_start(request, IFLA_INFO_DATA);
    mnl_attr_put_u16(request, IFLA_VLAN_ID, id);
    mnl_attr_nest_end(request, data);
    mnl_attr_nest_end(request, nest);
    return tell(nl, request, "make VLAN interface", name, err);
}

int netlink_change(struct netlink *nl, const char *name, const struct netlink_change *change, struct error *err)
{
    char buffer[MESSAGE_BYTES_MAX];
    struct ifinfomsg *info;
    if (change->quiet) { /* alone: a kernel without IPv6 refuses it, and has nothing to keep quiet then */
        struct nlmsghdr *request = link_request(buffer, RTM_NEWLINK, 0, &info);
        mnl_attr_put_strz(request, IFLA_IFNAME, name);
        put_quiet(request);
        tell(nl, request, "quiet", name, NULL);
    }
    struct nlmsghdr *request = link_request(buffer, RTM_NEWLINK, 0, &info);
    mnl_attr_put_strz(request, IFLA_IFNAME, name);
    if (change->up)
        info->ifi_flags = info->ifi_change = IFF_UP;
    if (change->alias != NULL)
        mnl_attr_put_strz(request, IFLA_IFALIAS, change->alias);
    if (change->mtu != 0)
        mnl_attr_put_u32(request, IFLA_MTU, change->mtu);
    if (change->master != 0)
        mnl_attr_put_u32(request, IFLA_MASTER, change->master > 0 ? (uint32_t)change->master : 0);
    return tell(nl, request, "configure interface", name, err);
}

int netlink_remove(struct netlink *nl, const char *name, struct error *err)
{
    char buffer[MESSAGE_BYTES_MAX];
    struct ifinfomsg *info;
    struct nlmsghdr *request = link_request(buffer, RTM_DELLINK, 0, &info);
    mnl_attr_put_strz(request, IFLA_IFNAME, name);
    struct error error = {.code = 0};
    int r = tell(nl, request, "remove interface", name, &error);
    if (r < 0 && r != -ENODEV && err != NULL)
        *err = error;
    return r == -ENODEV ? 0 : r;
}
