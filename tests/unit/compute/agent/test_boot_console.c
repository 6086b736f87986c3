/* What a guest writes to its console, as lines, against what is waited for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "compute/agent/boot_console.h"

static void patterns(void **test UNUSED)
{
    static const struct {
        const char *line, *pattern;
        bool has;
    } cases[] = {
        {"web1 login: ", " login:", true},
        {"systemd-logind: started", " login:", false},
        {"Reached target Multi-User", "Reached*Multi", true},
        {"Reached target Graphical", "Reached*Multi", false},
        {"aab", "ab", true},
        {"aaab", "a*aab", true},
        {"abcabd", "abd", true},
        {"x", "*", true},
        {"", "x", false},
        {"", "*", true},
        {"ab", "ab*", true},
        {"ab", "a*b*c", false},
        {"one two three", "one*three", true},
        {"three one", "one*three", false},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        if (boot_console_has(cases[i].line, cases[i].pattern) != cases[i].has)
            fail_msg("'%s' in '%s'", cases[i].pattern, cases[i].line);
}

/* Whatever pieces it comes in. */
static void pieces(void **test UNUSED)
{
    static const char text[] = "boot\r\n\x1b[1;32m[  OK  ]\x1b[0m Started \x1b[1mstuff\x1b[0m.\r\n\r\nweb1 login: ";
    for (size_t piece = 1; piece < sizeof text; piece++) {
        struct boot_console c = {.length = 0};
        char words[400];
        bool has = false;
        for (size_t at = 0; at + 1 < sizeof text; at += piece)
            has = boot_console_take(&c, text + at, MIN(piece, sizeof text - 1 - at), "web1 login:");
        assert_true(has);
        assert_int_equal(strncmp(c.seen, "web1 login:", 11), 0); /* as far as it had come */
        boot_console_words(&c, words, sizeof words);
        assert_string_equal(words, "'boot', '[  OK  ] Started stuff.', 'web1 login: '");
    }
}

/* What is shown of each: the codes of a terminal are not, and one without an end ends with its line. */
static void control_sequences(void **test UNUSED)
{
    static const struct {
        const char *said, *shown;
    } cases[] = {
        {"\x1b(Bweb1 login: \x1b)0", "'web1 login: '"},
        {"\x1b]0;root@web1\x07web1 login: ", "'web1 login: '"},
        {"\x1b]0;root@web1\x1b\\web1 login: ", "'web1 login: '"},
        {"\x1bPq#0\x1b\\a\x1b^b\x1b\\c\x1b_d\x07" "e", "'ace'"},
        {"\x1b]8;;never ends\nnext", "'next'"},
        {"\x1b[12;3\nnext", "'next'"},
        {"\x1b[1\x1b[2Ja\x1b]0;x\x18" "b", "'ab'"},
        {"a\x1b=b\x1b>c\x1b%Gd\x1b#8e\x1b" "cf", "'abcdef'"},
        {"\x1b[?25l\x1b[0;1;39mOK\x1b[m", "'OK'"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct boot_console c = {.length = 0};
        char words[200];
        assert_false(boot_console_take(&c, cases[i].said, strlen(cases[i].said), "never seen"));
        boot_console_words(&c, words, sizeof words);
        assert_string_equal(words, cases[i].shown);
    }
}

static void outside_bytes(void **test UNUSED)
{
    struct boot_console c = {.length = 0};
    char words[60], chunk[5000];
    boot_console_words(&c, words, sizeof words);
    assert_string_equal(words, "nothing");
    for (unsigned i = 0; i < 256; i++)
        memset(chunk + i, (int)i, 1);
    assert_false(boot_console_take(&c, chunk, 256, "never"));
    memset(chunk, 'x', sizeof chunk);
    memcpy(chunk + BOOT_CONSOLE_LINE_MAX - 2, "needle", 6); /* across what a line holds */
    assert_true(boot_console_take(&c, chunk, sizeof chunk, "needle"));
    c = (struct boot_console){.length = 0};
    memset(chunk, 'x', sizeof chunk);
    assert_false(boot_console_take(&c, chunk, sizeof chunk, "x*x*x*x*y"));
    assert_false(boot_console_take(&c, "\n'\xff\x01\n", 5, "never"));
    boot_console_words(&c, words, sizeof words); /* cut, never more */
    assert_int_equal(strlen(words), sizeof words - 1);
    for (const char *at = words; *at != '\0'; at++)
        assert_in_range(*at, ' ', '~');
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(patterns),
        cmocka_unit_test(pieces),
        cmocka_unit_test(control_sequences),
        cmocka_unit_test(outside_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
