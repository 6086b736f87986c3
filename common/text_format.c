/* The shapes that a string field can be asked to have (enum text_format in object.h). */
#include "common/object.h"

#include <ctype.h>
#include <string.h>

#include "common/ip_address.h"

static const struct {
    const char *name, *rule;
} formats[FORMAT_COUNT] = {
    [FORMAT_any] = {"any", "text without control characters"},
    [FORMAT_text] = {"text", "text without control characters but newline and tab"},
    [FORMAT_name] = {"name", "lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit"},
    [FORMAT_id] = {"id", "a UUID in lower case, such as 6f1c0b0e-6c1e-4d7a-9a57-0c6b8f3b2a11"},
    [FORMAT_time] = {"time", "a time in UTC such as 2026-01-31T12:00:00.000Z"},
    [FORMAT_sha256] = {"sha256", "64 lower-case hexadecimal digits (a SHA-256)"},
    [FORMAT_mac] = {"mac", "a unicast MAC address such as 52:54:00:12:34:56"},
    [FORMAT_url] = {"url", "a URL that begins with http://, https:// or file:///"},
    [FORMAT_path] = {"path", "an absolute path without '..'"},
    [FORMAT_address] = {"address", "host:port or [IPv6]:port"},
    [FORMAT_ip] = {"ip", "an IPv4 or IPv6 address such as 192.0.2.7 or 2001:db8::7"},
    [FORMAT_cidr] = {"cidr", "a subnet such as 192.0.2.0/24 or 2001:db8:1::/64, without bits behind the prefix"},
};

const char *text_format_name(enum text_format format)
{
    return formats[format].name;
}

static bool printable(const char *s, bool multi_line)
{
    for (; *s != '\0'; s++)
        if (((unsigned char)*s < 0x20 && !(multi_line && (*s == '\n' || *s == '\t'))) || *s == 0x7f)
            return false;
    return true;
}

/* One character class for each position: x hexadecimal digit, 9 decimal digit, the rest stands for itself. */
static bool matches(const char *s, const char *shape)
{
    for (; *shape != '\0'; s++, shape++) {
        if (*shape == 'x' ? !(isdigit((unsigned char)*s) || (*s >= 'a' && *s <= 'f'))
            : *shape == '9' ? !isdigit((unsigned char)*s)
                            : *s != *shape)
            return false;
    }
    return *s == '\0';
}

static bool is_name(const char *s)
{
    size_t n = strlen(s);
    return n > 0 && strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789-.") == n && isalnum((unsigned char)s[0]) &&
           isalnum((unsigned char)s[n - 1]);
}

static bool is_mac(const char *s)
{
    char lower[18];
    if (strlen(s) != 17)
        return false;
    for (size_t i = 0; i < sizeof lower; i++)
        lower[i] = (char)tolower((unsigned char)s[i]);
    return matches(lower, "xx:xx:xx:xx:xx:xx") && strchr("02468ace", lower[1]) != NULL;
}

static bool is_address(const char *s)
{
    const char *colon = strrchr(s, ':');
    if (colon == NULL || colon == s || !printable(s, false) || strpbrk(s, " /?#@") != NULL)
        return false;
    size_t n = strlen(colon + 1);
    unsigned port = 0;
    if (n == 0 || n > 5 || strspn(colon + 1, "0123456789") != n)
        return false;
    for (const char *c = colon + 1; *c != '\0'; c++)
        port = port * 10 + (unsigned)(*c - '0');
    if (s[0] == '[')
        return colon[-1] == ']' && port > 0 && port <= 65535;
    return memchr(s, ':', (size_t)(colon - s)) == NULL && port > 0 && port <= 65535;
}

static bool is_path(const char *s)
{
    size_t n = strlen(s);
    return s[0] == '/' && printable(s, false) && strstr(s, "/../") == NULL && !(n >= 3 && strcmp(s + n - 3, "/..") == 0);
}

static bool is_ip(const char *s)
{
    struct ip_address ip;
    return ip_parse(s, &ip);
}

static bool is_cidr(const char *s)
{
    struct ip_prefix prefix;
    return strchr(s, '/') != NULL && ip_prefix_parse(s, &prefix);
}

bool text_format_ok(enum text_format format, const char *s, const char **ret_rule)
{
    *ret_rule = formats[format].rule;
    switch (format) {
    case FORMAT_any:
        return printable(s, false);
    case FORMAT_text:
        return printable(s, true);
    case FORMAT_name:
        return is_name(s);
    case FORMAT_id:
        return matches(s, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx");
    case FORMAT_time:
        return matches(s, "9999-99-99T99:99:99.999Z");
    case FORMAT_sha256:
        return strlen(s) == 64 && strspn(s, "0123456789abcdef") == 64;
    case FORMAT_mac:
        return is_mac(s);
    case FORMAT_url:
        return printable(s, false) && strchr(s, ' ') == NULL &&
               ((strncmp(s, "http://", 7) == 0 && s[7] != '\0') || (strncmp(s, "https://", 8) == 0 && s[8] != '\0') ||
                (strncmp(s, "file:///", 8) == 0 && is_path(s + 7)));
    case FORMAT_path:
        return is_path(s);
    case FORMAT_address:
        return is_address(s);
    case FORMAT_ip:
        return is_ip(s);
    case FORMAT_cidr:
        return is_cidr(s);
    case FORMAT_COUNT:
        break;
    }
    return false;
}
