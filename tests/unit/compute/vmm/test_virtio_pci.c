/* The PCI transport as a guest sees it: ids, capabilities, negotiation rules, MSI-X, doorbells that follow the BAR,
 * the config space window, save and load. The device behind it is virtio-rng, which needs nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>

#include "compute/vmm/devices/rng/rng.h"
#include "tests/unit/compute/vmm/virtio_driver.h"

struct bench {
    struct machine m;
    struct driver d;
};

static void attach(struct bench *b)
{
    struct virtio_device *vdev;
    assert_int_equal(rng_create(&b->m.memory, &vdev, NULL), 0);
    driver_attach(&b->d, &b->m, vdev);
}
static int setup(void **state)
{
    struct bench *b = NEW(struct bench);
    machine_init(&b->m);
    attach(b);
    *state = b;
    return 0;
}
static int teardown(void **state)
{
    struct bench *b = *state;
    driver_detach(&b->d);
    assert_int_equal(b->m.doorbell_count, 0);
    for (unsigned i = 0; i < IRQ_GSI_MAX / 64; i++)
        assert_int_equal(b->m.chip.gsi_used[i], 0);
    machine_finish(&b->m);
    free(b);
    return 0;
}

/* Ask for @size random bytes at @gpa; how many came. */
static uint32_t ask(struct bench *b, uint64_t gpa, uint32_t size)
{
    struct used_entry used = {0};
    struct segment segment = {gpa, size, true};
    driver_add(&b->d, 0, &segment, 1);
    driver_kick(&b->d, 0);
    assert_true(driver_wait(&b->d, 0, &used));
    return used.size;
}

static void function_is_found(void **state)
{
    struct bench *b = *state;
    unsigned types = 0, count = 0;
    assert_int_equal(driver_config_read(&b->d, PCI_VENDOR_ID, 4), 0x1af4 | (0x1040 + VIRTIO_ID_RNG) << 16);
    assert_int_equal(driver_config_read(&b->d, PCI_REVISION, 1), 1);
    assert_true(driver_config_read(&b->d, PCI_STATUS, 2) & PCI_STATUS_CAPABILITIES);
    for (unsigned at = driver_config_read(&b->d, PCI_CAPABILITIES, 1); at != 0;
         at = driver_config_read(&b->d, at + 1, 1)) {
        assert_true(at >= 0x40 && at % 4 == 0 && ++count < 16);
        if (driver_config_read(&b->d, at, 1) != 0x09)
            continue;
        unsigned type = driver_config_read(&b->d, at + 3, 1);
        types |= 1u << type;
        assert_true(driver_config_read(&b->d, at + 2, 1) >= 16);
        assert_int_equal(driver_config_read(&b->d, at + 4, 1), VIRTIO_PCI_BAR);
        if (type != VIRTIO_PCI_CAP_PCI_CFG) {
            uint32_t offset = driver_config_read(&b->d, at + 8, 4), length = driver_config_read(&b->d, at + 12, 4);
            assert_true(length > 0 && offset + length <= VIRTIO_PCI_BAR_BYTES);
        }
    }
    /* All but the device configuration, which virtio-rng has none of. */
    assert_int_equal(types, 1u << VIRTIO_PCI_CAP_COMMON_CFG | 1u << VIRTIO_PCI_CAP_NOTIFY_CFG |
                                1u << VIRTIO_PCI_CAP_ISR_CFG | 1u << VIRTIO_PCI_CAP_PCI_CFG);
    assert_true(driver_msix_capability(&b->d) != 0);
}

static void requests_go_round(void **state)
{
    struct bench *b = *state;
    driver_start(&b->d, UINT64_MAX, RNG_QUEUE_SIZE);
    uint64_t gpa = driver_alloc(&b->d, 8192);
    uint8_t *bytes = driver_at(&b->d, gpa, 8192), sum = 0;
    assert_int_equal(ask(b, gpa, 100), 100);
    for (unsigned i = 0; i < 100; i++)
        sum |= bytes[i];
    assert_true(sum != 0);
    assert_int_equal(bytes[100], 0);
    assert_int_equal(ask(b, gpa, 8192), RNG_REQUEST_BYTES_MAX);
    for (unsigned i = 0; i < 300; i++)
        assert_int_equal(ask(b, gpa, 16), 16);
    assert_true(driver_interrupts(&b->d, 1) > 0);
}

static void negotiation_follows_the_rules(void **state)
{
    struct bench *b = *state;
    struct driver *d = &b->d;
    uint64_t version_1 = 1ull << VIRTIO_F_VERSION_1;
    assert_true(driver_features_offered(d) & version_1);
    driver_write(d, VIRTIO_PCI_COMMON_DFSELECT, 4, 2);
    assert_int_equal(driver_read(d, VIRTIO_PCI_COMMON_DF, 4), 0);
    assert_false(driver_negotiate(d, 0));                      /* VERSION_1 is a must */
    assert_false(driver_negotiate(d, version_1 | 1ull << 50)); /* never offered */
    driver_set_status(d, (uint8_t)(driver_status(d) | VIRTIO_CONFIG_S_DRIVER_OK));
    assert_false(driver_status(d) & VIRTIO_CONFIG_S_DRIVER_OK);
    assert_true(driver_negotiate(d, version_1));
    /* Features are fixed now, and status bits are not taken back. */
    driver_write(d, VIRTIO_PCI_COMMON_GFSELECT, 4, 0);
    driver_write(d, VIRTIO_PCI_COMMON_GF, 4, UINT32_MAX);
    assert_int_equal(driver_read(d, VIRTIO_PCI_COMMON_GF, 4), 0);
    driver_set_status(d, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    assert_int_equal(driver_status(d),
                     VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK);
    driver_set_status(d, VIRTIO_CONFIG_S_NEEDS_RESET | driver_status(d)); /* not the driver's bit */
    assert_false(driver_status(d) & VIRTIO_CONFIG_S_NEEDS_RESET);
}

static void queue_setup_has_its_time(void **state)
{
    struct bench *b = *state;
    struct driver *d = &b->d;
    driver_write(d, VIRTIO_PCI_COMMON_Q_SELECT, 2, 0);
    driver_write(d, VIRTIO_PCI_COMMON_Q_SIZE, 2, 8); /* before FEATURES_OK: refused */
    assert_int_equal(driver_read(d, VIRTIO_PCI_COMMON_Q_SIZE, 2), RNG_QUEUE_SIZE);
    driver_start(d, UINT64_MAX, 32);
    assert_int_equal(driver_read(d, VIRTIO_PCI_COMMON_Q_SIZE, 2), 32);
    assert_int_equal(driver_read(d, VIRTIO_PCI_COMMON_Q_ENABLE, 2), 1);
    uint64_t desc = driver_read(d, VIRTIO_PCI_COMMON_Q_DESCLO, 8);
    assert_int_equal(desc, d->queues[0].desc);
    driver_write(d, VIRTIO_PCI_COMMON_Q_DESCLO, 8, 0);
    driver_write(d, VIRTIO_PCI_COMMON_Q_SIZE, 2, 8);
    assert_int_equal(driver_read(d, VIRTIO_PCI_COMMON_Q_DESCLO, 8), desc);
    assert_int_equal(driver_read(d, VIRTIO_PCI_COMMON_Q_SIZE, 2), 32);
    /* Queues that are not there */
    driver_write(d, VIRTIO_PCI_COMMON_Q_SELECT, 2, 1);
    assert_int_equal(driver_read(d, VIRTIO_PCI_COMMON_Q_SIZE, 2), 0);
    driver_write(d, VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
    driver_write(d, VIRTIO_PCI_COMMON_Q_MSIX, 2, 0);
    assert_int_equal(driver_read(d, VIRTIO_PCI_COMMON_Q_MSIX, 2), MSIX_NO_VECTOR);
    driver_write(d, VIRTIO_PCI_COMMON_Q_SELECT, 2, 0xffff);
    driver_write(d, VIRTIO_PCI_COMMON_Q_SIZE, 2, 1);
    /* Vectors out of range read back as none. */
    driver_write(d, VIRTIO_PCI_COMMON_MSIX, 2, 2);
    assert_int_equal(driver_read(d, VIRTIO_PCI_COMMON_MSIX, 2), MSIX_NO_VECTOR);
    driver_write(d, VIRTIO_PCI_COMMON_MSIX, 2, 1);
    assert_int_equal(driver_read(d, VIRTIO_PCI_COMMON_MSIX, 2), 1);
    /* Reset forgets it all. */
    driver_set_status(d, 0);
    driver_write(d, VIRTIO_PCI_COMMON_Q_SELECT, 2, 0);
    assert_int_equal(driver_read(d, VIRTIO_PCI_COMMON_Q_SIZE, 2), RNG_QUEUE_SIZE);
    assert_int_equal(driver_read(d, VIRTIO_PCI_COMMON_Q_ENABLE, 2), 0);
    assert_int_equal(driver_read(d, VIRTIO_PCI_COMMON_Q_DESCLO, 8), 0);
    assert_int_equal(driver_read(d, VIRTIO_PCI_COMMON_MSIX, 2), MSIX_NO_VECTOR);
}

static void ring_outside_of_memory_needs_a_reset(void **state)
{
    struct bench *b = *state;
    struct driver *d = &b->d;
    assert_true(driver_negotiate(d, 1ull << VIRTIO_F_VERSION_1));
    driver_write(d, VIRTIO_PCI_COMMON_Q_SELECT, 2, 0);
    driver_write(d, VIRTIO_PCI_COMMON_Q_DESCLO, 8, FAKE_MEMORY_BYTES);
    driver_write(d, VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
    assert_int_equal(driver_read(d, VIRTIO_PCI_COMMON_Q_ENABLE, 2), 0);
    assert_true(driver_status(d) & VIRTIO_CONFIG_S_NEEDS_RESET);
}

static void masked_vectors_wait(void **state)
{
    struct bench *b = *state;
    struct driver *d = &b->d;
    uint64_t entry = VIRTIO_PCI_AT_MSIX_TABLE + 16;
    driver_start(d, 0, RNG_QUEUE_SIZE);
    uint64_t gpa = driver_alloc(d, 4096);
    assert_int_equal(ask(b, gpa, 1), 1);
    assert_int_equal(driver_interrupts(d, 1), 1);
    driver_write(d, entry + 12, 4, 1); /* masked */
    ask(b, gpa, 1);
    ask(b, gpa, 1);
    assert_int_equal(driver_interrupts(d, 1), 0);
    assert_int_equal(driver_read(d, VIRTIO_PCI_AT_MSIX_PBA, 8), 2);
    assert_int_equal(driver_read(d, VIRTIO_PCI_AT_MSIX_PBA, 1), 2);
    driver_write(d, entry + 12, 1, 0);
    assert_int_equal(driver_interrupts(d, 1), 1);
    assert_int_equal(driver_read(d, VIRTIO_PCI_AT_MSIX_PBA, 4), 0);
    /* The whole function masked; then another message for the vector, written in odd pieces. */
    unsigned control = driver_msix_capability(d) + 2;
    driver_config_write(d, control, 2, 0xc000);
    ask(b, gpa, 1);
    assert_int_equal(driver_interrupts(d, 1), 0);
    driver_write(d, entry, 8, 0xfee01000);
    driver_write(d, entry + 8, 2, 0x4444);
    driver_write(d, entry + 10, 1, 0x33);
    assert_int_equal(driver_read(d, entry + 8, 4), 0x334444);
    assert_int_equal(driver_read(d, entry, 8), 0xfee01000);
    driver_config_write(d, control - 2, 4, 0x8000u << 16);
    assert_int_equal(driver_interrupts(d, 0x334444), 1);
    /* MSI-X off: nothing is raised, the ISR byte tells, and reading it acknowledges. */
    driver_config_write(d, control, 2, 0);
    ask(b, gpa, 1);
    assert_int_equal(driver_read(d, VIRTIO_PCI_AT_ISR, 1), 1);
    assert_int_equal(driver_read(d, VIRTIO_PCI_AT_ISR, 1), 0);
    /* Past the table's end. */
    driver_write(d, VIRTIO_PCI_AT_MSIX_TABLE + 2 * 16, 8, UINT64_MAX);
    assert_int_equal(driver_read(d, VIRTIO_PCI_AT_MSIX_TABLE + 2 * 16, 8), 0);
    assert_int_equal(driver_read(d, VIRTIO_PCI_AT_MSIX_PBA + 8, 8), 0);
}

static void doorbells_follow_the_bar(void **state)
{
    struct bench *b = *state;
    struct driver *d = &b->d;
    driver_start(d, UINT64_MAX, RNG_QUEUE_SIZE);
    assert_int_equal(b->m.doorbell_count, 1);
    assert_int_equal(b->m.doorbells[0].address, d->bar + VIRTIO_PCI_AT_NOTIFY);
    driver_config_write(d, PCI_COMMAND, 2, 0);
    assert_int_equal(b->m.doorbell_count, 0);
    assert_int_equal(driver_read(d, 0, 4), UINT32_MAX);
    d->bar = 0xe0000000;
    driver_config_write(d, PCI_BAR0 + 4 * VIRTIO_PCI_BAR, 4, 0xe0000000);
    driver_config_write(d, PCI_BAR0 + 4 * VIRTIO_PCI_BAR + 4, 4, 0);
    driver_config_write(d, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    assert_int_equal(b->m.doorbells[0].address, d->bar + VIRTIO_PCI_AT_NOTIFY);
    assert_int_equal(ask(b, driver_alloc(d, 4096), 8), 8);
}

static void slow_paths_lose_nothing(void **state)
{
    struct bench *b = *state;
    struct driver *d = &b->d;
    driver_config_write(d, PCI_COMMAND, 2, 0);
    b->m.refuse_doorbells = b->m.refuse_gsis = true;
    driver_config_write(d, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    assert_int_equal(b->m.doorbell_count, 0);
    driver_start(d, 0, RNG_QUEUE_SIZE);
    assert_int_equal(ask(b, driver_alloc(d, 4096), 8), 8);
    assert_int_equal(b->m.messages_sent, 1);
}

static unsigned window(struct driver *d)
{
    unsigned at = driver_config_read(d, PCI_CAPABILITIES, 1);
    while (driver_config_read(d, at, 1) != 0x09 || driver_config_read(d, at + 3, 1) != VIRTIO_PCI_CAP_PCI_CFG)
        at = driver_config_read(d, at + 1, 1);
    return at;
}

static void firmware_goes_by_the_window(void **state)
{
    struct bench *b = *state;
    struct driver *d = &b->d;
    unsigned at = window(d);
    driver_config_write(d, PCI_COMMAND, 2, 0); /* the BAR is not even mapped */
    driver_config_write(d, at + 4, 1, VIRTIO_PCI_BAR);
    driver_config_write(d, at + 8, 4, VIRTIO_PCI_COMMON_STATUS);
    driver_config_write(d, at + 12, 4, 1);
    driver_config_write(d, at + 16, 1, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    assert_int_equal(driver_config_read(d, at + 16, 1), VIRTIO_CONFIG_S_ACKNOWLEDGE);
    driver_config_write(d, at + 8, 4, VIRTIO_PCI_COMMON_NUMQ);
    driver_config_write(d, at + 12, 4, 2);
    assert_int_equal(driver_config_read(d, at + 16, 4) & 0xffff, 1);
    /* Places that are not there, widths that are none. */
    static const uint32_t wrong[][3] = {{VIRTIO_PCI_BAR, 1, 2},
                                        {VIRTIO_PCI_BAR, VIRTIO_PCI_BAR_BYTES, 4},
                                        {VIRTIO_PCI_BAR, UINT32_MAX - 3, 4},
                                        {0, 0, 4},
                                        {VIRTIO_PCI_BAR, 0, 3},
                                        {VIRTIO_PCI_BAR, 0, 0},
                                        {VIRTIO_PCI_BAR, 0, 8}};
    for (unsigned i = 0; i < ARRAY_SIZE(wrong); i++) {
        driver_config_write(d, at + 4, 1, wrong[i][0]);
        driver_config_write(d, at + 8, 4, wrong[i][1]);
        driver_config_write(d, at + 12, 4, wrong[i][2]);
        driver_config_write(d, at + 16, 4, 0);
        driver_config_read(d, at + 16, 4);
    }
    driver_config_write(d, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    assert_int_equal(driver_status(d), VIRTIO_CONFIG_S_ACKNOWLEDGE);
}

static void state_moves_to_another_process(void **state)
{
    struct bench *b = *state;
    struct error err = {0};
    driver_start(&b->d, UINT64_MAX, 32);
    uint64_t gpa = driver_alloc(&b->d, 4096);
    for (unsigned i = 0; i < 40; i++)
        ask(b, gpa, 16);
    driver_pause(&b->d);
    struct segment segment = {gpa, 5, true};
    driver_add(&b->d, 0, &segment, 1);
    driver_kick(&b->d, 0); /* unheeded: paused */
    assert_false(driver_has_used(&b->d, 0));
    struct bytes_writer saved = driver_save(&b->d);
    struct driver before = b->d;
    driver_detach(&b->d);
    attach(b);
    for (size_t cut = 0; cut < saved.size; cut++) {
        uint8_t *exact = xcalloc(1, cut);
        memcpy(exact, saved.data, cut);
        assert_true(driver_load(&b->d, exact, cut, &err) < 0);
        free(exact);
    }
    assert_int_equal(driver_load(&b->d, saved.data, saved.size, &err), 0);
    struct bytes_writer again = driver_save(&b->d);
    assert_int_equal(again.size, saved.size);
    assert_memory_equal(again.data, saved.data, saved.size);
    b->d.bar = before.bar;
    b->d.free_gpa = before.free_gpa;
    memcpy(b->d.queues, before.queues, sizeof before.queues);
    driver_resume(&b->d);
    struct used_entry used = {0};
    assert_true(driver_wait(&b->d, 0, &used)); /* the kick that was lost is made good */
    assert_int_equal(used.size, 5);
    assert_true(driver_interrupts(&b->d, 1) > 0);
    assert_int_equal(ask(b, gpa, 16), 16);
    bytes_writer_finish(&saved);
    bytes_writer_finish(&again);
}

/* Whatever one byte of a state is changed to, load refuses or gives a device that can be used and released. */
static void damaged_state_is_survived(void **state)
{
    struct bench *b = *state;
    driver_start(&b->d, UINT64_MAX, 32);
    driver_pause(&b->d);
    struct bytes_writer saved = driver_save(&b->d);
    for (size_t i = 0; i < saved.size * 3; i++) {
        saved.data[i / 3] ^= (uint8_t)(i % 3 == 0 ? 1 : i % 3 == 1 ? 0x80 : 0xff);
        driver_detach(&b->d);
        attach(b);
        if (driver_load(&b->d, saved.data, saved.size, NULL) == 0)
            driver_resume(&b->d);
        saved.data[i / 3] ^= (uint8_t)(i % 3 == 0 ? 1 : i % 3 == 1 ? 0x80 : 0xff);
    }
    bytes_writer_finish(&saved);
}

static void machine_reset_clears_the_device(void **state)
{
    struct bench *b = *state;
    struct device *device = virtio_pci_device(b->d.pci);
    driver_start(&b->d, UINT64_MAX, 32);
    ask(b, driver_alloc(&b->d, 4096), 8);
    pthread_mutex_lock(&b->m.lock);
    device->ops->reset(device);
    pthread_mutex_unlock(&b->m.lock);
    assert_int_equal(driver_status(&b->d), 0);
    assert_int_equal(driver_config_read(&b->d, driver_msix_capability(&b->d) + 2, 2), 1); /* off, two vectors */
    assert_int_equal(driver_read(&b->d, VIRTIO_PCI_AT_MSIX_TABLE + 12, 4), 1);
    driver_start(&b->d, UINT64_MAX, 32);
    assert_int_equal(ask(b, driver_alloc(&b->d, 4096), 8), 8);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    static const struct CMUnitTest tests[] = {
        T(function_is_found),
        T(requests_go_round),
        T(negotiation_follows_the_rules),
        T(queue_setup_has_its_time),
        T(ring_outside_of_memory_needs_a_reset),
        T(masked_vectors_wait),
        T(doorbells_follow_the_bar),
        T(slow_paths_lose_nothing),
        T(firmware_goes_by_the_window),
        T(state_moves_to_another_process),
        T(damaged_state_is_survived),
        T(machine_reset_clears_the_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
