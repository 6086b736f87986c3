/* OVA: the tar, then the little of XML that is needed; see ova_archive.h.
 *
 * The OVF is not parsed as XML in full: only its tags are walked, comments and the like passed over. Names of elements and
 * attributes are compared without their prefix, for which there is no other meaning in an OVF. */
#include "compute/agent/ova_archive.h"

#include <errno.h>
#include <string.h>
#include <strings.h>

#define BLOCK 512u
#define DISK_ID_BYTES_MAX 100u

/* ---- tar ---- */

static int octal(const uint8_t *text, size_t size, uint64_t *ret)
{
    uint64_t n = 0;
    size_t i = 0, digits = 0;
    if (text[0] & 0x80) { /* GNU: binary, for what octal has no room */
        if (text[0] != 0x80)
            return -EBADMSG;
        for (i = 1; i < size; i++) {
            if (n >> 55 != 0)
                return -EBADMSG;
            n = n << 8 | text[i];
        }
        *ret = n;
        return 0;
    }
    while (i < size && text[i] == ' ')
        i++;
    for (; i < size && text[i] >= '0' && text[i] <= '7'; i++, digits++)
        n = n << 3 | (uint64_t)(text[i] - '0'); /* at most 12 digits: 36 bits */
    if (digits == 0 || (i < size && text[i] != ' ' && text[i] != '\0'))
        return -EBADMSG;
    *ret = n;
    return 0;
}

static bool checksum_ok(const uint8_t header[BLOCK])
{
    uint64_t said, sum = 0;
    for (unsigned i = 0; i < BLOCK; i++)
        sum += i >= 148 && i < 156 ? ' ' : header[i];
    return octal(header + 148, 8, &said) == 0 && said == sum;
}

static bool all_zero(const uint8_t *data, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (data[i] != 0)
            return false;
    return true;
}

int ova_tar_header(const uint8_t header[BLOCK], struct ova_entry *ret_entry, struct error *err)
{
    struct ova_entry entry = {.offset = 0};
    if (all_zero(header, BLOCK))
        return -ENODATA;
    if (!checksum_ok(header) || octal(header + 124, 12, &entry.size) < 0)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the OVA is no tar archive, or is damaged: a header of it is wrong");
    char type = (char)header[156];
    if (type == 'x' || type == 'L' || type == 'K')
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                         "the OVA has extended headers (type %c), which are not supported; pack it with tar --format=ustar", type);
    if (type == '1' || type == '2')
        entry.size = 0; /* links have none */
    if (type != '0' && type != '\0') {
        *ret_entry = entry;
        return 0;
    }
    memcpy(entry.name, header, OVA_NAME_BYTES_MAX);
    bool prefix = memcmp(header + 257, "ustar", 5) == 0 && header[345] != 0;
    if (prefix || strchr(entry.name, '/') != NULL || entry.name[0] == '\0') { /* "./disk.vmdk" is what some tools write */
        const char *base = strncmp(entry.name, "./", 2) == 0 ? entry.name + 2 : entry.name;
        if (prefix || strchr(base, '/') != NULL || base[0] == '\0')
            return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "the OVA has files in directories, which an OVA may not have");
        memmove(entry.name, base, strlen(base) + 1);
    }
    *ret_entry = entry;
    return 1;
}

/* ---- the tags of an OVF ---- */

struct tag {
    const char *name; /* without prefix */
    size_t name_size;
    const char *attributes, *end;
};

static const char *find(const char *at, const char *end, const char *what)
{
    return at < end ? memmem(at, (size_t)(end - at), what, strlen(what)) : NULL;
}

/* Behind what begins with "<" but is no tag; NULL: it does not end. */
static const char *pass_over(const char *at, const char *end)
{
    const char *close = strncmp(at, "<!--", 4) == 0 ? "-->" : strncmp(at, "<![CDATA[", 9) == 0 ? "]]>" : at[1] == '?' ? "?>" : ">";
    const char *found = find(at, end, close);
    return found != NULL ? found + strlen(close) : NULL;
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* The name between @at and @end, without what stands before a colon. */
static void local_name(const char *at, const char *end, const char **ret_name, size_t *ret_size)
{
    const char *colon = memchr(at, ':', (size_t)(end - at));
    *ret_name = colon != NULL ? colon + 1 : at;
    *ret_size = (size_t)(end - *ret_name);
}

/* The next opening tag at or behind *@at, which is moved behind it. 1; 0: none; -EBADMSG. The text ends with a NUL. */
static int next_tag(const char **at, const char *end, struct tag *ret)
{
    const char *p = *at;
    while ((p = find(p, end, "<")) != NULL) {
        if (p[1] == '!' || p[1] == '?' || p[1] == '/') {
            if ((p = pass_over(p, end)) == NULL)
                return -EBADMSG;
            continue;
        }
        const char *name = p + 1;
        for (p = name; p < end && !is_blank(*p) && *p != '>' && *p != '/'; p++)
            ;
        local_name(name, p, &ret->name, &ret->name_size);
        ret->attributes = p;
        for (char quote = 0; p < end && (quote != 0 || *p != '>'); p++) {
            if (quote != 0 && *p == quote)
                quote = 0;
            else if (quote == 0 && (*p == '"' || *p == '\''))
                quote = *p;
        }
        if (p >= end)
            return -EBADMSG;
        ret->end = p;
        *at = p + 1;
        return 1;
    }
    return 0;
}

/* 1: there, copied; 0: not there; -EBADMSG; -ENOBUFS; -ENOTSUP: it has entities. */
static int attribute(const struct tag *tag, const char *wanted, char *buffer, size_t size)
{
    for (const char *p = tag->attributes; p < tag->end;) {
        const char *name, *local;
        size_t length;
        while (p < tag->end && (is_blank(*p) || *p == '/'))
            p++;
        for (name = p; p < tag->end && *p != '=' && !is_blank(*p); p++)
            ;
        if (p == name)
            return 0;
        local_name(name, p, &local, &length);
        while (p < tag->end && is_blank(*p))
            p++;
        if (p >= tag->end || *p != '=')
            return -EBADMSG;
        for (p++; p < tag->end && is_blank(*p); p++)
            ;
        if (p >= tag->end || (*p != '"' && *p != '\''))
            return -EBADMSG;
        const char *value = p + 1, *close = memchr(value, *p, (size_t)(tag->end - value));
        if (close == NULL)
            return -EBADMSG;
        p = close + 1;
        if (length != strlen(wanted) || memcmp(local, wanted, length) != 0)
            continue;
        if (memchr(value, '&', (size_t)(close - value)) != NULL)
            return -ENOTSUP;
        if ((size_t)(close - value) >= size)
            return -ENOBUFS;
        memcpy(buffer, value, (size_t)(close - value));
        buffer[close - value] = '\0';
        return 1;
    }
    return 0;
}

static bool is_tag(const struct tag *tag, const char *name)
{
    return tag->name_size == strlen(name) && memcmp(tag->name, name, tag->name_size) == 0;
}

static int malformed(struct error *err)
{
    return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the OVF description in the OVA is malformed");
}

/* The reference of the one disk. */
static int disk_reference(const char *ovf, const char *end, char reference[DISK_ID_BYTES_MAX + 1], struct error *err)
{
    struct tag tag;
    unsigned disks = 0;
    int r;
    for (const char *at = ovf; (r = next_tag(&at, end, &tag)) == 1;) {
        char other[DISK_ID_BYTES_MAX + 1];
        if (!is_tag(&tag, "Disk"))
            continue;
        if ((r = attribute(&tag, "parentRef", other, sizeof(other))) < 0)
            return malformed(err);
        if (r == 1)
            return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "a disk of the OVA has a parent disk; export it as one whole disk");
        if ((r = attribute(&tag, "fileRef", disks == 0 ? reference : other, sizeof(other))) < 0)
            return malformed(err);
        disks += r == 1; /* without a file it is an empty one, made by whoever deploys it */
    }
    if (r < 0)
        return malformed(err);
    if (disks != 1)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                         "the OVA has %u disks with content, and an image is one disk; export the disks one by one", disks);
    return 0;
}

static int file_of(const struct tag *tag, char *ret_name, struct error *err)
{
    char text[OVA_NAME_BYTES_MAX + 1];
    int r = attribute(tag, "compression", text, sizeof(text));
    if (r < 0 || (r == 1 && strcmp(text, "") != 0 && strcmp(text, "identity") != 0))
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "the disk of the OVA is compressed; export it without");
    if (attribute(tag, "chunkSize", text, sizeof(text)) != 0)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "the disk of the OVA is cut in pieces; export it as one file");
    r = attribute(tag, "href", ret_name, OVA_NAME_BYTES_MAX + 1);
    if (r != 1)
        return malformed(err);
    if (strchr(ret_name, '/') != NULL)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "the disk of the OVA is not in it, but elsewhere: %.60s", ret_name);
    return 0;
}

int ova_disk_name(const char *ovf, size_t size, char *ret_name, struct error *err)
{
    CLEANUP_FREE char *text = xcalloc(1, size + 16); /* terminated: looking ahead is safe */
    char reference[DISK_ID_BYTES_MAX + 1], id[DISK_ID_BYTES_MAX + 1];
    struct tag tag;
    memcpy(text, ovf, size);
    const char *end = text + size;
    int r = disk_reference(text, end, reference, err);
    if (r < 0)
        return r;
    for (const char *at = text; (r = next_tag(&at, end, &tag)) == 1;)
        if (is_tag(&tag, "File") && attribute(&tag, "id", id, sizeof(id)) == 1 && strcmp(id, reference) == 0)
            return file_of(&tag, ret_name, err);
    return r < 0 ? malformed(err)
                 : error_set(err, -EBADMSG, ERROR_CHECKSUM, "the OVF description refers to a file '%.60s' that it does not name",
                             reference);
}

/* ---- both ---- */

struct walk {
    ova_read read;
    void *arg;
    uint64_t size, at;
    unsigned entries;
};

/* The next file. 1; 0: no more. */
static int next_entry(struct walk *w, struct ova_entry *ret, struct error *err)
{
    uint8_t header[BLOCK];
    for (;;) {
        if (w->at == w->size)
            return 0; /* without the two empty blocks that should end it */
        int r = w->size - w->at < BLOCK ? -EIO : w->read(header, BLOCK, w->at, w->arg);
        if (r < 0)
            return error_set(err, r, ERROR_CHECKSUM, "the OVA is cut off: it ends in the middle of a header");
        r = ova_tar_header(header, ret, err);
        if (r < 0)
            return r == -ENODATA ? 0 : r;
        if (++w->entries > OVA_ENTRIES_MAX)
            return error_set(err, -E2BIG, ERROR_NOT_SUPPORTED, "the OVA has more than %u files", OVA_ENTRIES_MAX);
        ret->offset = w->at + BLOCK;
        uint64_t left = w->size - ret->offset;
        if (ret->size > left)
            return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the OVA is cut off: %s should have %llu bytes, %llu are left",
                             ret->name[0] != '\0' ? ret->name : "a part of it", (unsigned long long)ret->size,
                             (unsigned long long)left);
        uint64_t padded = (ret->size + BLOCK - 1) / BLOCK * BLOCK;
        w->at = ret->offset + MIN(padded, left);
        if (r == 1)
            return 1;
    }
}

static bool ends_with(const char *name, const char *suffix)
{
    size_t n = strlen(name), k = strlen(suffix);
    return n > k && strcasecmp(name + n - k, suffix) == 0;
}

static int disk_of_ovf(struct walk *w, const struct ova_entry *ovf, char *ret_name, struct error *err)
{
    if (ovf->size > OVA_OVF_BYTES_MAX)
        return error_set(err, -EFBIG, ERROR_NOT_SUPPORTED, "the OVF description has %llu bytes, and at most %u are read",
                         (unsigned long long)ovf->size, OVA_OVF_BYTES_MAX);
    CLEANUP_FREE char *text = xcalloc(1, (size_t)ovf->size + 1);
    int r = w->read(text, (size_t)ovf->size, ovf->offset, w->arg);
    return r < 0 ? error_errno(err, r, "cannot read the OVA") : ova_disk_name(text, (size_t)ovf->size, ret_name, err);
}

int ova_find_disk(ova_read read, void *arg, uint64_t archive_size, struct ova_entry *ret_disk, struct error *err)
{
    struct walk w = {.read = read, .arg = arg, .size = archive_size};
    struct ova_entry entry;
    char name[OVA_NAME_BYTES_MAX + 1] = "";
    int r;
    while ((r = next_entry(&w, &entry, err)) == 1 && !ends_with(entry.name, ".ovf"))
        ;
    if (r < 0)
        return r;
    if (r == 0)
        return error_set(err, -EBADMSG, ERROR_NOT_SUPPORTED, "the archive has no .ovf file in it, so it is no OVA");
    if ((r = disk_of_ovf(&w, &entry, name, err)) < 0)
        return r;
    w.at = 0;
    w.entries = 0;
    while ((r = next_entry(&w, &entry, err)) == 1)
        if (strcmp(entry.name, name) == 0) {
            *ret_disk = entry;
            return 0;
        }
    return r < 0 ? r
                 : error_set(err, -ENOENT, ERROR_CHECKSUM, "the OVA has no file '%s', which its description says is the disk", name);
}
