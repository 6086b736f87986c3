/* A directory that is a store: what is there is found, and one that goes away in the middle, as a share that is not mounted any more, is
 * told from one that has nothing in it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "backup/store_dir.h"
#include "common/file.h"

struct world {
    char directory[32], *path, *away;
    struct store *store;
};

static void world_open(struct world *w)
{
    memcpy(w->directory, "/tmp/drover-store-XXXXXX", sizeof "/tmp/drover-store-XXXXXX");
    assert_non_null(mkdtemp(w->directory));
    w->path = xasprintf("%s/there/store", w->directory);
    w->away = xasprintf("%s/away", w->directory);
    assert_int_equal(store_open(w->path, &w->store, NULL), 0);
}

static void world_close(struct world *w)
{
    store_destroy(w->store);
    assert_int_equal(file_remove_tree("/tmp", w->directory + strlen("/tmp/"), NULL), 0);
    free(w->path);
    free(w->away);
}

static int put(struct world *w, const char *name, const char *text, struct error *err)
{
    return store_put(w->store, name, text, strlen(text), err);
}

static void holds(struct world *w, const char *name, const char *text)
{
    uint8_t *data;
    size_t size;
    assert_int_equal(store_read(w->store, name, 100, &data, &size, NULL), 0);
    assert_int_equal(size, strlen(text));
    assert_memory_equal(data, text, size);
    free(data);
}

static size_t listed(struct world *w, const char *prefix)
{
    struct store_listing l = {0};
    assert_int_equal(store_listing_load(w->store, prefix, &l, NULL), 0);
    size_t count = l.count;
    store_listing_finish(&l);
    return count;
}

static void what_is_put_is_there(void **state UNUSED)
{
    struct world w;
    bool has = true;
    world_open(&w);
    assert_int_equal(listed(&w, ""), 0); /* not even the directory is there */
    assert_int_equal(store_remove(w.store, "packs/aa/one", NULL), 0);
    assert_int_equal(store_has(w.store, "packs/aa/one", &has, NULL), 0);
    assert_false(has);
    assert_int_equal(put(&w, STORE_SIGN, "sign", NULL), 0);
    assert_int_equal(put(&w, "packs/aa/one", "1", NULL), 0);
    assert_int_equal(put(&w, "packs/aa/two", "2", NULL), 0);
    assert_int_equal(put(&w, "packs/aa/two", "22", NULL), 0);
    assert_int_equal(put(&w, "indexes/1", "3", NULL), 0);
    holds(&w, "packs/aa/two", "22");
    assert_int_equal(listed(&w, ""), 4);
    assert_int_equal(listed(&w, "packs/"), 2);
    assert_int_equal(listed(&w, "packs/aa/o"), 1);
    assert_int_equal(listed(&w, "packs/bb/"), 0);
    assert_int_equal(store_remove(w.store, "packs/aa/one", NULL), 0);
    assert_int_equal(store_remove(w.store, "packs/aa/one", NULL), 0);
    assert_int_equal(store_collect(w.store, 0, NULL), 0);
    assert_int_equal(listed(&w, ""), 3);
    world_close(&w);
}

static void none_answers(struct world *w)
{
    struct error err = {0};
    struct store_listing l = {0};
    bool has;
    assert_int_equal(put(w, "packs/bb/new", "new", &err), -EHOSTUNREACH);
    assert_int_equal(err.kind, ERROR_UNREACHABLE);
    assert_non_null(strstr(err.text, "still mounted"));
    assert_int_equal(store_listing_load(w->store, "packs/", &l, &err), -EHOSTUNREACH);
    store_listing_finish(&l);
    assert_int_equal(store_has(w->store, "packs/aa/one", &has, &err), -EHOSTUNREACH);
    assert_int_equal(store_remove(w->store, "packs/aa/one", &err), -EHOSTUNREACH);
    assert_int_equal(store_collect(w->store, 0, &err), -EHOSTUNREACH);
}

/* A backup would go on there, a collection find that nobody needs anything, a verification that all is lost. */
static void one_that_goes_away_is_not_empty(void **state UNUSED)
{
    static const char *const seen_by[] = {"put", "read", "list"};
    for (size_t i = 0; i < ARRAY_SIZE(seen_by); i++) {
        struct world w;
        struct stat st;
        bool has;
        world_open(&w);
        assert_int_equal(put(&w, STORE_SIGN, "sign", NULL), 0);
        assert_int_equal(put(&w, "packs/aa/one", "1", NULL), 0);
        if (i > 0) { /* another process */
            store_destroy(w.store);
            assert_int_equal(store_open(w.path, &w.store, NULL), 0);
        }
        if (i == 1)
            holds(&w, STORE_SIGN, "sign");
        if (i == 2)
            assert_int_equal(listed(&w, "packs/"), 1);
        assert_int_equal(rename(w.path, w.away), 0);
        none_answers(&w);
        assert_true(stat(w.path, &st) < 0 && errno == ENOENT); /* and none is made */
        assert_int_equal(mkdir(w.path, 0700), 0);               /* where it was mounted */
        none_answers(&w);
        assert_int_equal(rmdir(w.path), 0); /* nothing was made in it */
        assert_int_equal(rename(w.away, w.path), 0);
        holds(&w, "packs/aa/one", "1");
        assert_int_equal(store_has(w.store, "packs/bb/new", &has, NULL), 0);
        assert_false(has);
        assert_int_equal(put(&w, "packs/bb/new", "new", NULL), 0);
        assert_int_equal(listed(&w, "packs/"), 2);
        world_close(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_is_put_is_there), cmocka_unit_test(one_that_goes_away_is_not_empty)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
