/* A store that is a bucket of S3: see store_s3.h. */
#include "backup/store_s3.h"

#include <ctype.h>
#include <curl/curl.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "backup/manifest.h"
#include "backup/s3_sign.h"
#include "backup/store_pace.h"

enum { ANSWER_BYTES_MAX = 8 << 20, HANDLES_MAX = 64 };

struct store_s3 {
    struct store store;
    char *bucket, *prefix; /* prefix: "" or with '/' at its end */
    char *endpoint, *host, *region, *access_key, *secret_key;
    pthread_mutex_t lock;
    CURL *idle[HANDLES_MAX]; /* connections that stay open */
    unsigned idle_count;
};

/* One request and its answer. */
struct call {
    struct store_s3 *s3;
    const char *method;
    char *path; /* "/bucket/prefix/name" */
    struct s3_query query[S3_QUERY_MAX];
    unsigned query_count;
    const uint8_t *body;
    size_t body_size, body_at;
    char range[64]; /* "" or "bytes=a-b" */
    uint8_t *into;  /* where the answer goes, at most into_size; NULL: answer */
    size_t into_size, got;
    struct bytes_writer answer; /* XML, or words of an error */
    long status;
    time_t server_time;
    char curl_error[CURL_ERROR_SIZE];
};

static struct store_s3 *of_store(struct store *store)
{
    return CONTAINER_OF(store, struct store_s3, store);
}

/* ---- transport ---- */

static size_t on_send(char *buffer, size_t size, size_t count, void *arg)
{
    struct call *c = arg;
    size_t part = MIN(size * count, c->body_size - c->body_at);
    store_pace_take(c->s3->store.pace, part);
    memcpy(buffer, c->body + c->body_at, part);
    c->body_at += part;
    return part;
}

static size_t on_receive(char *data, size_t size, size_t count, void *arg)
{
    struct call *c = arg;
    size_t part = size * count;
    if (c->into != NULL && (c->status == 0 || c->status / 100 == 2)) {
        if (part > c->into_size - c->got)
            return 0; /* more than was asked for: an error of the transfer */
        store_pace_take(c->s3->store.pace, part);
        memcpy(c->into + c->got, data, part);
        c->got += part;
        return part;
    }
    if (c->answer.size + part > ANSWER_BYTES_MAX)
        return 0;
    bytes_put(&c->answer, data, part);
    return part;
}

static size_t on_header(char *data, size_t size, size_t count, void *arg)
{
    struct call *c = arg;
    char line[256];
    snprintf(line, sizeof line, "%.*s", (int)MIN(size * count, sizeof line - 1), data);
    if (strncmp(line, "HTTP/", 5) == 0 && strchr(line, ' ') != NULL)
        c->status = strtol(strchr(line, ' '), NULL, 10);
    if (strncasecmp(line, "date:", 5) == 0)
        c->server_time = curl_getdate(line + 5, NULL);
    return size * count;
}

static CURL *handle_take(struct store_s3 *s3)
{
    pthread_mutex_lock(&s3->lock);
    CURL *h = s3->idle_count > 0 ? s3->idle[--s3->idle_count] : NULL;
    pthread_mutex_unlock(&s3->lock);
    return h != NULL ? h : curl_easy_init();
}

static void handle_give(struct store_s3 *s3, CURL *h)
{
    pthread_mutex_lock(&s3->lock);
    bool keep = s3->idle_count < HANDLES_MAX;
    if (keep)
        s3->idle[s3->idle_count++] = h;
    pthread_mutex_unlock(&s3->lock);
    if (!keep)
        curl_easy_cleanup(h);
}

static struct curl_slist *headers_make(struct call *c)
{
    struct s3_credentials credentials = {c->s3->access_key, c->s3->secret_key, c->s3->region, NULL};
    struct s3_request request = {
        .method = c->method, .host = c->s3->host, .path = c->path, .query_count = c->query_count, .now = time(NULL)};
    char sha[S3_SHA256_TEXT_BYTES], date[17];
    struct bytes_writer line = {0};
    memcpy(request.query, c->query, sizeof c->query);
    request.payload_sha256 = s3_sha256(c->body != NULL ? (const void *)c->body : "", c->body_size, sha);
    bytes_put_text(&line, "Authorization: ");
    s3_authorization(&request, &credentials, &line);
    bytes_put_u8(&line, 0);
    struct curl_slist *headers = curl_slist_append(NULL, (const char *)line.data);
    line.size = 0;
    bytes_put_format(&line, "x-amz-content-sha256: %s", sha);
    bytes_put_u8(&line, 0);
    headers = curl_slist_append(headers, (const char *)line.data);
    line.size = 0;
    bytes_put_format(&line, "x-amz-date: %s", s3_date(request.now, date));
    bytes_put_u8(&line, 0);
    headers = curl_slist_append(headers, (const char *)line.data);
    headers = curl_slist_append(headers, "Expect:");
    headers = curl_slist_append(headers, "Content-Type: application/octet-stream");
    if (c->range[0] != '\0') {
        line.size = 0;
        bytes_put_format(&line, "Range: %s", c->range);
        bytes_put_u8(&line, 0);
        headers = curl_slist_append(headers, (const char *)line.data);
    }
    bytes_writer_finish(&line);
    return headers;
}

static void url_make(const struct call *c, struct bytes_writer *out)
{
    struct s3_request request = {.query_count = c->query_count};
    memcpy(request.query, c->query, sizeof c->query);
    bytes_put_text(out, c->s3->endpoint);
    s3_encode(out, c->path, true);
    if (c->query_count > 0) {
        bytes_put_text(out, "?");
        s3_query_encode(&request, out);
    }
    bytes_put_u8(out, 0);
}

static CURLcode call_once(struct call *c)
{
    CURL *h = handle_take(c->s3);
    struct bytes_writer url = {0};
    if (h == NULL)
        return CURLE_FAILED_INIT;
    c->status = 0;
    c->got = c->body_at = c->answer.size = 0;
    c->curl_error[0] = '\0';
    struct curl_slist *headers = headers_make(c);
    url_make(c, &url);
    curl_easy_reset(h);
    curl_easy_setopt(h, CURLOPT_URL, (const char *)url.data);
    curl_easy_setopt(h, CURLOPT_PATH_AS_IS, 1L);
    curl_easy_setopt(h, CURLOPT_CUSTOMREQUEST, c->method);
    curl_easy_setopt(h, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(h, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(h, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(h, CURLOPT_CONNECTTIMEOUT_MS, 10000L);
    curl_easy_setopt(h, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(h, CURLOPT_LOW_SPEED_TIME, 60L);
    curl_easy_setopt(h, CURLOPT_ERRORBUFFER, c->curl_error);
    curl_easy_setopt(h, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(h, CURLOPT_HEADERDATA, c);
    curl_easy_setopt(h, CURLOPT_WRITEFUNCTION, on_receive);
    curl_easy_setopt(h, CURLOPT_WRITEDATA, c);
    if (c->body != NULL) {
        curl_easy_setopt(h, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(h, CURLOPT_INFILESIZE_LARGE, (curl_off_t)c->body_size);
        curl_easy_setopt(h, CURLOPT_READFUNCTION, on_send);
        curl_easy_setopt(h, CURLOPT_READDATA, c);
        curl_easy_setopt(h, CURLOPT_UPLOAD_BUFFERSIZE, 256L << 10);
    }
    CURLcode result = curl_easy_perform(h);
    curl_slist_free_all(headers);
    bytes_writer_finish(&url);
    handle_give(c->s3, h);
    return result;
}

/* What came to the server was not what was sent, or not in time. */
static bool hurt_on_the_way(struct call *c)
{
    static const char *const codes[] = {"BadDigest", "XAmzContentSHA256Mismatch", "RequestTimeout", "IncompleteBody"};
    bool found = false;
    if (c->status != 400)
        return false;
    bytes_put_u8(&c->answer, 0);
    c->answer.size--;
    for (size_t i = 0; i < ARRAY_SIZE(codes); i++)
        found = found || strstr((const char *)c->answer.data, codes[i]) != NULL;
    return found;
}

static bool worth_another(CURLcode result, long status)
{
    if (result != CURLE_OK)
        return result != CURLE_URL_MALFORMAT && result != CURLE_UNSUPPORTED_PROTOCOL &&
               result != CURLE_OUT_OF_MEMORY && result != CURLE_PEER_FAILED_VERIFICATION;
    return status == 429 || status == 500 || status == 502 || status == 503 || status == 504;
}

static void wait_before(unsigned attempt)
{
    uint64_t luck, ms = (uint64_t)STORE_S3_FIRST_WAIT_MS << attempt;
    repo_random(&luck, sizeof luck);
    ms += luck % (ms / 2 + 1);
    struct timespec left = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
    nanosleep(&left, NULL);
}

/* ---- answers ---- */

/* What is between <tag> and </tag>, from @from on; NULL: there is none. @ret_text holds @size. */
static const char *xml_text(const char *from, const char *tag, char *ret_text, size_t size)
{
    char open[48], close[48];
    snprintf(open, sizeof open, "<%s>", tag);
    snprintf(close, sizeof close, "</%s>", tag);
    const char *begin = strstr(from, open), *end = begin != NULL ? strstr(begin, close) : NULL;
    size_t at = 0;
    if (end == NULL)
        return NULL;
    for (const char *c = begin + strlen(open); c < end; c++) {
        static const struct {
            const char *entity;
            char is;
        } entities[] = {{"&amp;", '&'},  {"&lt;", '<'},    {"&gt;", '>'},
                        {"&quot;", '"'}, {"&apos;", '\''}, {"&#34;", '"'}};
        char is = *c;
        for (size_t i = 0; *c == '&' && i < ARRAY_SIZE(entities); i++)
            if (strncmp(c, entities[i].entity, strlen(entities[i].entity)) == 0) {
                is = entities[i].is;
                c += strlen(entities[i].entity) - 1;
                break;
            }
        if (at + 1 >= size)
            return NULL;
        ret_text[at++] = is;
    }
    ret_text[at] = '\0';
    return end;
}

static int refused(struct call *c, const char *name, struct error *err)
{
    char code[64] = "", text[200] = "";
    const char *where = c->s3->store.location;
    bytes_put_u8(&c->answer, 0);
    xml_text((const char *)c->answer.data, "Code", code, sizeof code);
    xml_text((const char *)c->answer.data, "Message", text, sizeof text);
    for (char *t = text; *t != '\0'; t++)
        *t = isprint((unsigned char)*t) ? *t : ' ';
    if (strcmp(code, "RequestTimeTooSkewed") == 0 || strcmp(code, "RequestExpired") == 0)
        return error_set(err, -ETIME, ERROR_FORBIDDEN,
                         "%s refuses us because the clocks differ: this machine's is %lld s %s the server's", where,
                         (long long)llabs((long long)(time(NULL) - c->server_time)),
                         time(NULL) > c->server_time ? "ahead of" : "behind");
    if (strcmp(code, "SignatureDoesNotMatch") == 0)
        return error_set(err, -EACCES, ERROR_FORBIDDEN,
                         "%s refuses our signature: AWS_SECRET_ACCESS_KEY is wrong, or the region (%s)", where,
                         c->s3->region);
    if (strcmp(code, "InvalidAccessKeyId") == 0)
        return error_set(err, -EACCES, ERROR_FORBIDDEN, "%s does not know the access key %s", where,
                         c->s3->access_key);
    if (strcmp(code, "NoSuchBucket") == 0)
        return error_set(err, -ENODEV, ERROR_NOT_FOUND, "there is no bucket %s at %s", c->s3->bucket,
                         c->s3->endpoint);
    if (hurt_on_the_way(c))
        return error_set(err, -EIO, ERROR_UNREACHABLE, "%s is damaged on the way to %s each time: %s", name, where,
                         code);
    if (c->status == 404)
        return error_set(err, -ENOENT, ERROR_NOT_FOUND, "there is no %s in %s", name, where);
    if (c->status == 403 || c->status == 401)
        return error_set(err, -EACCES, ERROR_FORBIDDEN, "%s does not let us at %s: %s %s", where, name, code, text);
    if (c->status == 507 || strcmp(code, "QuotaExceeded") == 0)
        return error_set(err, -ENOSPC, ERROR_NO_SPACE, "%s is full: %s", where, text);
    if (c->status == 429 || c->status / 100 == 5)
        return error_set(err, -EBUSY, ERROR_UNREACHABLE, "%s answered %ld to each of %d requests for %s: %s", where,
                         c->status, STORE_S3_TRIES, name, code);
    return error_set(err, -EIO, ERROR_INTERNAL, "%s answered %ld for %s: %s %s", where, c->status, name, code, text);
}

/* 0: 2xx came. 416: the status, as a range that is beyond the end. */
static int call_run(struct call *c, const char *name, struct error *err)
{
    for (unsigned attempt = 0;; attempt++) {
        CURLcode result = call_once(c);
        if ((worth_another(result, c->status) || hurt_on_the_way(c)) && attempt + 1 < STORE_S3_TRIES) {
            wait_before(attempt);
            continue;
        }
        if (result != CURLE_OK)
            return error_set(err, -EHOSTUNREACH, ERROR_UNREACHABLE, "%s cannot be reached, %u tries: %s",
                             c->s3->store.location, attempt + 1,
                             c->curl_error[0] != '\0' ? c->curl_error : curl_easy_strerror(result));
        if (c->status / 100 == 2)
            return 0;
        return c->status == 416 ? 416 : refused(c, name, err);
    }
}

static void call_init(struct call *c, struct store *store, const char *method, const char *name)
{
    struct store_s3 *s3 = of_store(store);
    *c = (struct call){.s3 = s3, .method = method};
    c->path = name != NULL ? xasprintf("/%s/%s%s", s3->bucket, s3->prefix, name) : xasprintf("/%s", s3->bucket);
}

static void call_finish(struct call *c)
{
    free(c->path);
    bytes_writer_finish(&c->answer);
}

/* ---- the vtable ---- */

static int s3_put(struct store *store, const char *name, const void *data, size_t size, struct error *err)
{
    struct call c;
    call_init(&c, store, "PUT", name);
    c.body = data;
    c.body_size = size;
    int code = call_run(&c, name, err);
    call_finish(&c);
    return code > 0 ? error_set(err, -EIO, ERROR_INTERNAL, "%s answered 416 to a put", store->location) : code;
}

static int s3_get(struct store *store, const char *name, uint64_t offset, void *buffer, size_t size, size_t *ret_size,
                  struct error *err)
{
    struct call c;
    if (size == 0) {
        *ret_size = 0;
        return 0;
    }
    call_init(&c, store, "GET", name);
    snprintf(c.range, sizeof c.range, "bytes=%" PRIu64 "-%" PRIu64, offset, offset + size - 1);
    c.into = buffer;
    c.into_size = size;
    int code = call_run(&c, name, err);
    if (code == 0 && c.status == 200 && offset > 0)
        code = error_set(err, -EIO, ERROR_INTERNAL, "%s does not know ranges", store->location);
    if (code >= 0)
        *ret_size = code == 416 ? 0 : c.got;
    call_finish(&c);
    return MIN(code, 0);
}

static int s3_remove(struct store *store, const char *name, struct error *err)
{
    struct call c;
    call_init(&c, store, "DELETE", name);
    int code = call_run(&c, name, err);
    call_finish(&c);
    return code == -ENOENT || code > 0 ? 0 : code;
}

/* RFC 3339 in UTC, with as many digits of a fraction as a server likes to give. */
static bool time_take(const char *text, int64_t *ret_ms)
{
    struct tm tm = {0};
    const char *end = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);
    int ms = 0, place = 100;
    if (end != NULL && *end == '.')
        for (end++; *end >= '0' && *end <= '9'; end++, place /= 10)
            ms += (*end - '0') * place;
    if (end == NULL || strcmp(end, "Z") != 0)
        return false;
    *ret_ms = (int64_t)timegm(&tm) * 1000 + ms;
    return true;
}

/* One page of a list. @ret_next: the token of the next; "" none. */
static int page_take(struct store_s3 *s3, const char *xml, store_each_cb each, void *arg, char *ret_next,
                     size_t next_size)
{
    char truncated[8] = "", key[1100], size[24], modified[40];
    int code = 0;
    for (const char *at = xml; code >= 0 && (at = strstr(at, "<Contents>")) != NULL;) {
        const char *end = strstr(at, "</Contents>");
        if (end == NULL || xml_text(at, "Key", key, sizeof key) == NULL ||
            xml_text(at, "Size", size, sizeof size) == NULL)
            return -EBADMSG;
        struct store_entry e = {.name = key + strlen(s3->prefix), .size_bytes = strtoull(size, NULL, 10)};
        if (xml_text(at, "LastModified", modified, sizeof modified) == NULL || !time_take(modified, &e.modified_ms))
            e.modified_ms = STORE_TIME_UNKNOWN;
        if (strncmp(key, s3->prefix, strlen(s3->prefix)) == 0)
            code = each(arg, &e);
        at = end;
    }
    ret_next[0] = '\0';
    if (xml_text(xml, "IsTruncated", truncated, sizeof truncated) != NULL && strcmp(truncated, "true") == 0 &&
        xml_text(xml, "NextContinuationToken", ret_next, next_size) == NULL)
        return -EBADMSG;
    return MIN(code, 0);
}

static int s3_list(struct store *store, const char *prefix, store_each_cb each, void *arg, struct error *err)
{
    struct store_s3 *s3 = of_store(store);
    CLEANUP_FREE char *whole = xasprintf("%s%s", s3->prefix, prefix);
    char next[1100] = "";
    int code = 0;
    do {
        struct call c;
        call_init(&c, store, "GET", NULL);
        c.query[c.query_count++] = (struct s3_query){"list-type", "2"};
        c.query[c.query_count++] = (struct s3_query){"prefix", whole};
        if (next[0] != '\0')
            c.query[c.query_count++] = (struct s3_query){"continuation-token", next};
        code = call_run(&c, prefix, err);
        bytes_put_u8(&c.answer, 0);
        if (code == 0) {
            char following[sizeof next] = "";
            code = page_take(s3, (const char *)c.answer.data, each, arg, following, sizeof following);
            if (code == -EBADMSG)
                error_set(err, code, ERROR_INTERNAL, "%s answered a list that cannot be read", store->location);
            memcpy(next, following, sizeof next);
        }
        call_finish(&c);
    } while (code == 0 && next[0] != '\0');
    return MIN(code, 0);
}

static void s3_destroy(struct store *store)
{
    struct store_s3 *s3 = of_store(store);
    for (unsigned i = 0; i < s3->idle_count; i++)
        curl_easy_cleanup(s3->idle[i]);
    if (s3->secret_key != NULL)
        memset(s3->secret_key, 0, strlen(s3->secret_key));
    free(s3->bucket);
    free(s3->prefix);
    free(s3->endpoint);
    free(s3->host);
    free(s3->region);
    free(s3->access_key);
    free(s3->secret_key);
    pthread_mutex_destroy(&s3->lock);
    free(s3);
}

/* ---- location ---- */

static int options_take(struct store_s3 *s3, char *options, struct error *err)
{
    char *rest = NULL;
    for (char *o = strtok_r(options, "&", &rest); o != NULL; o = strtok_r(NULL, "&", &rest)) {
        char **to = strncmp(o, "endpoint=", 9) == 0 ? &s3->endpoint
                    : strncmp(o, "region=", 7) == 0 ? &s3->region
                                                    : NULL;
        if (to == NULL)
            return error_set_field(err, -EINVAL, ERROR_INVALID, "/store",
                                   "'%.64s' is no option of s3://: endpoint and region are", o);
        free(*to);
        *to = xstrdup(strchr(o, '=') + 1);
    }
    if (s3->region == NULL)
        s3->region = xstrdup("us-east-1");
    if (s3->endpoint == NULL)
        s3->endpoint = xasprintf("https://s3.%s.amazonaws.com", s3->region);
    while (s3->endpoint[0] != '\0' && s3->endpoint[strlen(s3->endpoint) - 1] == '/')
        s3->endpoint[strlen(s3->endpoint) - 1] = '\0';
    bool https = strncmp(s3->endpoint, "https://", 8) == 0;
    if (!https && strncmp(s3->endpoint, "http://", 7) != 0)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/store",
                               "the endpoint is http://HOST[:PORT] or https://HOST[:PORT]");
    s3->host = xstrdup(s3->endpoint + (https ? 8 : 7));
    if (s3->host[0] == '\0' || strpbrk(s3->host, "/?#@ ") != NULL)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/store",
                               "the endpoint is a host and a port, without a path");
    char *port = strrchr(s3->host, ':');
    if (port != NULL && strcmp(port, https ? ":443" : ":80") == 0)
        *port = '\0'; /* as libcurl sends it */
    return 0;
}

static int location_take(struct store_s3 *s3, const char *location, struct error *err)
{
    CLEANUP_FREE char *text = xstrdup(location + strlen("s3://"));
    char *options = strchr(text, '?');
    if (options != NULL)
        *options++ = '\0';
    char *prefix = strchr(text, '/');
    if (prefix != NULL)
        *prefix++ = '\0';
    while (prefix != NULL && prefix[0] != '\0' && prefix[strlen(prefix) - 1] == '/')
        prefix[strlen(prefix) - 1] = '\0';
    bool has = prefix != NULL && prefix[0] != '\0';
    if (text[0] == '\0' || strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789.-") != strlen(text) ||
        (has && !store_name_ok(prefix)))
        return error_set_field(
            err, -EINVAL, ERROR_INVALID, "/store",
            "a store on S3 is s3://BUCKET[/PREFIX], of lower-case letters, digits, '.', '_' and '-'");
    s3->bucket = xstrdup(text);
    s3->prefix = has ? xasprintf("%s/", prefix) : xstrdup("");
    snprintf(s3->store.location, sizeof s3->store.location, "s3://%s%s%s", s3->bucket, has ? "/" : "",
             has ? prefix : "");
    return options_take(s3, options, err);
}

int store_s3_create(const char *location, struct store **ret_store, struct error *err)
{
    static const struct store_ops ops = {
        .put = s3_put, .get = s3_get, .list = s3_list, .remove = s3_remove, .destroy = s3_destroy};
    const char *access = getenv("AWS_ACCESS_KEY_ID"), *secret = getenv("AWS_SECRET_ACCESS_KEY");
    if (strlen(location) >= STORE_LOCATION_BYTES)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/store", "a store's location has less than %d bytes",
                               STORE_LOCATION_BYTES);
    struct store_s3 *s3 = NEW(struct store_s3);
    s3->store.ops = &ops;
    s3->store.transfers = STORE_S3_TRANSFERS;
    pthread_mutex_init(&s3->lock, NULL);
    int code = location_take(s3, location, err);
    if (code == 0 && (access == NULL || secret == NULL))
        code =
            error_set(err, -EACCES, ERROR_FORBIDDEN,
                      "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY have to be in the environment for a store on S3");
    if (code < 0) {
        s3_destroy(&s3->store);
        return code;
    }
    s3->access_key = xstrdup(access);
    s3->secret_key = xstrdup(secret);
    curl_global_init(CURL_GLOBAL_DEFAULT);
    *ret_store = &s3->store;
    return 0;
}
