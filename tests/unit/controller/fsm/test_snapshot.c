/* Snapshots: the same state gives the same bytes, reading gives the state back, damage is refused in words, and a
 * cluster of 20,000 VMs stays within its size. */
#include <time.h>

#include "tests/unit/controller/fsm_fixture.h"

#define GOLDEN "schema/golden/snapshot-1.bin"
#define MANY_VMS 20000u
#define MANY_BYTES_MAX 20000000u

/* A bit of everything. */
static void furnish(struct fixture *f)
{
    fixture_init(f);
    fixture_host(f, "n1", 8192);
    fixture_host(f, "n2", 1024);
    f->key = "key-1";
    f->fingerprint = "print-1";
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"web\",\"image\":\"tiny\",\"flavor\":\"small\",\"labels\":{\"env\":\"test\"},\"disks\":[{\"name\":\"d\","
                 "\"size_bytes\":1048576}],\"nics\":[{\"bridge\":\"br0\"}]}");
    f->key = f->fingerprint = NULL;
    fixture_vm_is(f, "web", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"big\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":17179869184}");
    fixture_must(f, ROUTE_ID_vm_stop, "web", NULL);
}

static void golden_bytes(void **test UNUSED)
{
    struct fixture f;
    static uint8_t golden[65536];
    furnish(&f);
    struct bytes_writer now = fixture_snapshot(f.state);
    const char *write = getenv("GOLDEN_WRITE"); /* a new version only: the bytes of an old one are never rewritten */
    if (write != NULL && access(GOLDEN, F_OK) != 0) {
        FILE *file = fopen(GOLDEN, "w");
        assert_int_equal(fwrite(now.data, 1, now.size, file), now.size);
        fclose(file);
    }
    FILE *file = fopen(GOLDEN, "r");
    assert_non_null(file);
    size_t size = fread(golden, 1, sizeof golden, file);
    fclose(file);
    struct state *read = NULL;
    assert_int_equal(snapshot_read(golden, size, &read, &f.error), 0); /* old bytes stay readable */
    assert_int_equal(check_state(read, &f.error), 0);
    state_destroy(read);
    assert_int_equal(size, now.size); /* and this version still writes them so */
    assert_memory_equal(golden, now.data, size);
    bytes_writer_finish(&now);
    fixture_finish_all(&f);
}

static void reading_gives_it_back(void **test UNUSED)
{
    struct fixture f;
    struct state *read = NULL;
    furnish(&f);
    struct bytes_writer bytes = fixture_snapshot(f.state);
    assert_int_equal(snapshot_read(bytes.data, bytes.size, &read, NULL), 0);
    assert_int_equal(check_state(read, &f.error), 0);
    fixture_same_bytes(f.state, read);
    f.twin = read; /* and it goes on in the same way */
    fixture_vm_is(&f, "web", vm_state_STOPPED);
    fixture_must(&f, ROUTE_ID_vm_delete, "big", NULL);
    fixture_must(&f, ROUTE_ID_vm_start, "web", NULL);
    fixture_same_bytes(f.state, read);
    assert_int_equal(snapshot_restore(f.state, bytes.data, bytes.size, NULL), 0);
    assert_int_equal(fixture_vm(&f, "big")->state, vm_state_PENDING);
    bytes_writer_finish(&bytes);
    fixture_finish_all(&f);
}

static void an_empty_state(void **test UNUSED)
{
    struct state *a = state_create(), *b = NULL;
    struct bytes_writer bytes = fixture_snapshot(a);
    assert_int_equal(snapshot_read(bytes.data, bytes.size, &b, NULL), 0);
    fixture_same_bytes(a, b);
    state_destroy(a);
    state_destroy(b);
    bytes_writer_finish(&bytes);
}

static int read_copy(const void *data, size_t size, struct error *err)
{
    struct state *state = NULL;
    void *exact = malloc(size > 0 ? size : 1); /* of that very size: a sanitizer sees one byte too far */
    memcpy(exact, data, size);
    int rc = snapshot_read(exact, size, &state, err);
    free(exact);
    if (rc < 0)
        assert_null(state);
    state_destroy(state);
    return rc;
}

static void damage_is_refused_in_words(void **test UNUSED)
{
    struct fixture f;
    furnish(&f);
    struct bytes_writer bytes = fixture_snapshot(f.state);
    for (size_t size = 0; size < bytes.size; size += size < 64 ? 1 : 7) {
        f.error.text[0] = '\0';
        assert_int_equal(read_copy(bytes.data, size, &f.error), -EBADMSG);
        assert_true(strlen(f.error.text) > 10);
    }
    unsigned accepted = 0;
    for (size_t i = 0; i < bytes.size; i += 3) {
        bytes.data[i] ^= 0x41;
        if (read_copy(bytes.data, bytes.size, &f.error) == 0)
            accepted++; /* a letter of a label: the checksum around it is raft_frame's */
        bytes.data[i] ^= 0x41;
    }
    assert_true(accepted < bytes.size / 12);
    bytes.data[4] = SNAPSHOT_VERSION + 1;
    assert_int_equal(read_copy(bytes.data, bytes.size, &f.error), -EPROTONOSUPPORT);
    assert_string_equal(f.error.text, "the snapshot has version 3, this program reads up to 2: upgrade it");
    struct bytes_writer before = fixture_snapshot(f.state), after;
    assert_int_equal(snapshot_restore(f.state, bytes.data, bytes.size, NULL), -EPROTONOSUPPORT);
    after = fixture_snapshot(f.state); /* a failed restore leaves what was */
    assert_memory_equal(before.data, after.data, before.size);
    bytes_writer_finish(&before);
    bytes_writer_finish(&after);
    bytes_writer_finish(&bytes);
    fixture_finish_all(&f);
}

static double ms_since(const struct timespec *from)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - from->tv_sec) * 1e3 + (double)(now.tv_nsec - from->tv_nsec) / 1e6;
}

/* VMs as people make them: a flavor, a disk, a network interface, placed, running. */
static void twenty_thousand_vms(void **test UNUSED)
{
    struct fixture f;
    struct timespec start;
    struct state *read = NULL;
    char name[64], body[300];
    fixture_init(&f);
    f.unchecked = true;
    for (unsigned i = 0; i < 50; i++) {
        snprintf(name, sizeof name, "node-%u", i);
        fixture_join(&f, name);
        struct node_report report = fixture_report(&f, name, 1 << 20);
        OBJECT_SET(node_report, &report, cpus, 256);
        fixture_send(&f, &report);
    }
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (unsigned i = 0; i < MANY_VMS; i++) {
        snprintf(body, sizeof body,
                 "{\"name\":\"project-web-%u\",\"image\":\"tiny\",\"flavor\":\"small\",\"disks\":[{\"name\":\"root\",\"size_bytes\":"
                 "10737418240}],\"nics\":[{\"bridge\":\"br0\"}]}", i);
        fixture_must(&f, ROUTE_ID_vm_create, NULL, body);
        snprintf(name, sizeof name, "project-web-%u", i);
        fixture_vm_is(&f, name, vm_state_RUNNING);
    }
    printf("20,000 VMs created and reported: %.0f us for each command\n", ms_since(&start) * 1e3 / (2 * MANY_VMS));
    fixture_must(&f, ROUTE_ID_image_update, "tiny", "{\"labels\":{\"a\":\"b\"}}");
    clock_gettime(CLOCK_MONOTONIC, &start);
    struct bytes_writer bytes = fixture_snapshot(f.state);
    printf("snapshot: %.1f MB, written in %.0f ms", (double)bytes.size / 1e6, ms_since(&start));
    clock_gettime(CLOCK_MONOTONIC, &start);
    assert_int_equal(snapshot_read(bytes.data, bytes.size, &read, NULL), 0);
    printf(", read in %.0f ms\n", ms_since(&start));
    f.unchecked = false;
    fixture_check(&f);
    fixture_same_bytes(f.state, read);
    assert_true(bytes.size <= MANY_BYTES_MAX);
    state_destroy(read);
    bytes_writer_finish(&bytes);
    fixture_finish_all(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_bytes),
        cmocka_unit_test(reading_gives_it_back),
        cmocka_unit_test(an_empty_state),
        cmocka_unit_test(damage_is_refused_in_words),
        cmocka_unit_test(twenty_thousand_vms),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
