/* Cut this machine, or some ports of it, off from others for a while, by the kernel's packet filter; for drills.
 *
 *   packet_cut_prepare   a table of our own, one for each @role, with two empty sets of addresses and the rules that drop what
 *        |               is of them: agent and controller of one machine may be cut at the same time, each for its own
 *   packet_cut_begin     the addresses go into the sets, each with a timeout: from now on packets from and to them are lost
 *        |  the kernel takes each address out again when its time is over, whoever has died meanwhile: nobody has to undo the cut
 *        v
 *   packet_cut_end       the table goes; before its time the cut ends with it
 *
 * What is left behind by a program that died on the way is a table that drops nothing; packet_cut_clean, at the next start,
 * finds it by a file that lies there from prepare to end, and ends a cut that still lasts. A machine that is started anew has
 * no tables. Each call runs nft and blocks for some hundredths of a second, PACKET_CUT_DEADLINE_MS at most. */
#ifndef COMMON_PACKET_CUT_H
#define COMMON_PACKET_CUT_H

#include "common/base.h"
#include "common/error.h"
#include "common/object.h"

#define PACKET_CUT_FAR_MAX 256u
#define PACKET_CUT_PORTS_MAX 64u
#define PACKET_CUT_SECONDS_MAX 600u
#define PACKET_CUT_DEADLINE_MS 3000

struct packet_cut_rules {
    /* TCP ports. Where own_count is 0 the whole machine is cut but for what is of @open_port (0: none) of its own; else only
     * what is of own ports @own, or of ports @theirs of the others. */
    uint16_t open_port;
    uint16_t own[PACKET_CUT_PORTS_MAX], theirs[PACKET_CUT_PORTS_MAX];
    unsigned own_count, theirs_count;
};

/* @far: IPv4 and IPv6 addresses; @seconds from packet_cut_begin on. *ret_elements is what to give to packet_cut_begin; the
 * caller frees. @mark: path of the file; @role: "host" or "controller", the same in all calls. Refuses addresses that are
 * none, or of this machine alone (ERROR_INVALID, field /far), and where there is no nft or no right to use it; nothing is left then. */
int packet_cut_prepare(const char *role, const char *mark, const struct packet_cut_rules *rules, const struct string_list *far,
                       unsigned seconds, char **ret_elements, struct error *err);
int packet_cut_begin(const char *elements, struct error *err);
/* Also where nothing was prepared. What goes wrong is in the log, and does no harm. */
void packet_cut_end(const char *role, const char *mark);
void packet_cut_clean(const char *role, const char *mark);
/* Of "address:port"; 0: none. */
uint16_t packet_cut_port(const char *address);

#endif
