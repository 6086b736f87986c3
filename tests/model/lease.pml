/* The lease of one host, as the design of high availability has it: three controllers, one agent, leaders that change, crashes
 * that forget what is not on disk, messages that are late or lost, clocks whose rates differ.
 *
 * Checked: the host is never declared lost while, as its agent counts, a majority of controllers supports its lease: its VMs
 * could be running there and elsewhere. And with -DLIVE: a host that is gone is declared lost in the end.
 *
 * How the world is cut down to what a checker can walk through; what is left out would make the host's case weaker:
 *   - Time is a number of ticks, the same for all controllers. The agent's clock is slow at worst (a fast one gives up
 *     earlier): of any three ticks it may miss one. So TTL = 2 of its ticks last at most 3 of the controllers', and that is the
 *     drift bound: TTL_C = TTL * 3/2.
 *   - A question that is granted arrived at once: a late one makes the controller's support begin later, and end later. One
 *     that is refused may have been on its way for a while. Any answer may be late, or too late to be worth anything; one at a
 *     time is on its way from each controller.
 *   - Raft is believed: what is committed stays; whoever acts as leader has applied all of it (a leader does nothing before a
 *     barrier of its own term); a controller takes no deposed leader's word (terms are on disk before anything is confirmed).
 *     Who leads is of no other account, so any member that is up with a majority may; confirmations outlive a leader.
 *   - A support counts whatever generation it was asked for.
 *
 * -DCLEAR: a suspected host that answers is cleared, and may be suspected again. -DCHANGES: members leave, one by one.
 * -DBREAK_...: one rule taken out; the checker must find the double run. tests/model/check runs all of it. */

#define TTL 2
#ifdef BREAK_DRIFT
#define TTL_C TTL /* rule 1: the controller counts no longer than the agent */
#else
#define TTL_C 3
#endif

#define NOTHING 0
#define YES 1
#define REFUSED 2

#define OPEN 0 /* the committed record of the host; odd: suspected */
#define SUSPECT 1
#define CLEARED 2
#define SUSPECT_AGAIN 3
#define IS_SUSPECT(record) ((record) == SUSPECT || (record) == SUSPECT_AGAIN)
#define MAX(a, b) ((a) > (b) -> (a) : (b))

/* The controllers. */
bool up[3] = true;
bool caught[3] = true; /* since its start it has applied what was committed when it first heard of a leader */
byte applied[3];       /* the host's record, as applied */
byte hold[3];          /* ticks before it may confirm: its last support lasts so long, or its start was so lately */
bool confirmed[3];     /* the leader has its word that its support has run out */

/* What is committed. */
byte record = OPEN;
bool lost;

/* The agent. */
bool alive = true;
byte lease[3];   /* ticks of its clock that a controller supports it for */
byte message[3]; /* an answer on its way */
byte age[3];     /* of its question, in ticks of the agent's clock */
byte ahead = TTL; /* ticks since that clock last missed one */
#ifdef BREAK_REFUSAL_AS_ASKED
bool held[3]; /* a support held when the question was sent */
#endif

#ifdef CHANGES
byte members;            /* committed: how many have left, of {0 1 2} first 2, then 1 */
byte members_of[3];      /* as each controller has applied it */
byte members_known;      /* the newest that the agent was told of */
byte settled = TTL_C;    /* ticks since a majority had applied the newest, up to TTL_C; 0: none has */
#define IS_MEMBER(c) ((c) < 3 - members)
#define IS_KNOWN(c) ((c) < 3 - members_known)
#define MAJORITY ((3 - members) / 2 + 1)
#define MAJORITY_KNOWN ((3 - members_known) / 2 + 1)
#else
#define IS_MEMBER(c) true
#define IS_KNOWN(c) true
#define MAJORITY 2
#define MAJORITY_KNOWN 2
#endif

#define COUNT(is) ((is(0) -> 1 : 0) + (is(1) -> 1 : 0) + (is(2) -> 1 : 0))
#define IS_UP(c) (IS_MEMBER(c) && up[c])
#define SUPPORTS(c) (IS_KNOWN(c) && lease[c] > 0)
#define HAS_CONFIRMED(c) (IS_MEMBER(c) && confirmed[c])
#define HAS_APPLIED(c) (IS_UP(c) && members_of[c] == members)
#define QUORUM (COUNT(IS_UP) >= MAJORITY)
#define RUNS (COUNT(SUPPORTS) >= MAJORITY_KNOWN) /* the agent's VMs may execute */

#ifdef BREAK_ONE_CONFIRMATION
#define ENOUGH 1 /* rule 4: a majority */
#else
#define ENOUGH MAJORITY
#endif

inline forget_confirmations()
{
    confirmed[0] = false;
    confirmed[1] = false;
    confirmed[2] = false
}

/* --- Time ------------------------------------------------------------------------------------------------------- */

inline tick_controller(c)
{
#ifdef BREAK_FOR_EVER
    skip /* nobody's support ever runs out: no host is ever declared lost */
#else
    hold[c] = (hold[c] > 0 -> hold[c] - 1 : 0)
#endif
}

/* An answer as old as that is worth nothing any more. */
inline tick_agent(c)
{
    lease[c] = (lease[c] > 0 -> lease[c] - 1 : 0);
    if
    :: message[c] == NOTHING -> skip
    :: message[c] != NOTHING && age[c] < TTL -> age[c]++
#ifndef BREAK_FROM_ANSWER
    :: message[c] != NOTHING && age[c] >= TTL - 1 -> vanish(c)
#endif
    fi
}

#ifdef BREAK_CHANGES_IN_A_ROW
#define SETTLED true
#else
#define SETTLED (settled == TTL_C) /* rule 7 */
#endif

#ifdef CHANGES
inline settle()
{
    settled = (settled > 0 -> settled : (COUNT(HAS_APPLIED) >= MAJORITY -> 1 : 0))
}
#else
#define settle() skip
#endif

inline tick()
{
    tick_controller(0);
    tick_controller(1);
    tick_controller(2);
#ifdef CHANGES
    settled = (settled > 0 && settled < TTL_C -> settled + 1 : settled);
#endif
    if
    :: alive && ahead == TTL -> ahead = 0
    :: true ->
        ahead = (ahead < TTL -> ahead + 1 : TTL);
        tick_agent(0);
        tick_agent(1);
        tick_agent(2)
    fi
}

/* --- Questions and answers -------------------------------------------------------------------------------------- */

inline vanish(c)
{
    message[c] = NOTHING;
    age[c] = 0
}

#ifdef BREAK_CATCH_UP
#define MAY_SUPPORT(c) (!IS_SUSPECT(applied[c]))
#else
#define MAY_SUPPORT(c) (caught[c] && !IS_SUSPECT(applied[c])) /* rule 5 */
#endif

inline ask(c)
{
    if
    :: !up[c] -> message[c] = REFUSED
    :: !up[c] -> message[c] = REFUSED; age[c] = 1
    :: up[c] && MAY_SUPPORT(c) ->
        hold[c] = TTL_C;
        message[c] = YES
    :: else -> skip
    fi
#ifdef BREAK_REFUSAL_AS_ASKED
    ;
    held[c] = lease[c] + age[c] > 0
#endif
}

#ifdef BREAK_FROM_ANSWER
#define WORTH(c) TTL
#else
#define WORTH(c) (TTL - age[c]) /* rule 1: from the moment when the question was sent */
#endif

#if defined(BREAK_REFUSAL_REVIVES)
#define EXTENDS(c) true
#elif defined(BREAK_REFUSAL_AS_ASKED)
#define EXTENDS(c) held[c]
#else
#define EXTENDS(c) (lease[c] > 0) /* rule 3: a support that holds when the refusal arrives */
#endif

inline answered(c)
{
    if
    :: message[c] == YES ->
        lease[c] = MAX(lease[c], WORTH(c));
#ifdef CHANGES
        members_known = MAX(members_known, members_of[c])
#endif
    :: message[c] == REFUSED && EXTENDS(c) -> lease[c] = MAX(lease[c], WORTH(c))
    :: else -> skip
    fi;
    vanish(c)
}

/* --- A controller's life ---------------------------------------------------------------------------------------- */

/* What it had applied it may have to apply again. */
inline crash(c)
{
    up[c] = false;
    hold[c] = 0; /* it remembers nothing of what it supported */
    caught[c] = false;
    applied[c] = OPEN
#ifdef CHANGES
    ;
    if
    :: true -> skip
    :: members_of[c] > 0 -> members_of[c] = 0
    fi
#endif
}

inline start(c)
{
    up[c] = true;
#ifdef BREAK_PATIENCE
    skip
#else
    hold[c] = TTL_C /* rule 5 */
#endif
}

inline catch_up(c)
{
    applied[c] = record;
    caught[c] = true;
#ifdef CHANGES
    members_of[c] = members;
    settle()
#endif
}

#ifdef CHANGES
#define BEHIND(c) (!caught[c] || applied[c] != record || members_of[c] != members)
#else
#define BEHIND(c) (!caught[c] || applied[c] != record)
#endif

#ifdef BREAK_CONFIRM_AT_ONCE
#define RUN_OUT(c) true
#else
#define RUN_OUT(c) (hold[c] == 0) /* rules 4 and 5 */
#endif
#define MAY_CONFIRM(c) (IS_UP(c) && IS_SUSPECT(record) && applied[c] == record && !confirmed[c] && RUN_OUT(c))

/* --- Two worlds that differ only in the controllers' names are one: their order is made the same ------------------- */

#ifdef CHANGES
#define order() skip /* there, a name says who leaves next */
#else
#define KEY(c) (((((((up[c] * 2 + caught[c]) * 4 + applied[c]) * 4 + hold[c]) * 2 + confirmed[c]) * 3 + lease[c]) * 3 +      \
                 message[c]) * 4 + age[c])
#define SWAP(what, a, b) swapped = what[a]; what[a] = what[b]; what[b] = swapped
#ifdef BREAK_REFUSAL_AS_ASKED
#define SWAP_HELD(a, b) SWAP(held, a, b)
#else
#define SWAP_HELD(a, b) skip
#endif
hidden byte swapped;

inline order_two(a, b)
{
    if
    :: KEY(a) < KEY(b) ->
        SWAP(up, a, b);
        SWAP(caught, a, b);
        SWAP(applied, a, b);
        SWAP(hold, a, b);
        SWAP(confirmed, a, b);
        SWAP(lease, a, b);
        SWAP(message, a, b);
        SWAP(age, a, b);
        SWAP_HELD(a, b)
    :: else -> skip
    fi
}

inline order()
{
    order_two(0, 1);
    order_two(1, 2);
    order_two(0, 1)
}
#endif

/* --- All that can happen, one thing at a time ------------------------------------------------------------------- */

#ifdef LIVE
/* From some moment on the host is gone and nobody crashes any more; then what can happen happens before time goes on. */
bool calm;
byte calm_ticks;
#define STORMY (!calm)
#define BUSY(c) ((!up[c] && IS_MEMBER(c)) || (QUORUM && IS_UP(c) && BEHIND(c)) || (QUORUM && MAY_CONFIRM(c)))
#define MAY_DECLARE (QUORUM && IS_SUSPECT(record) && !lost && COUNT(HAS_CONFIRMED) >= ENOUGH)
#define TIME_PASSES (!calm || !(BUSY(0) || BUSY(1) || BUSY(2) || MAY_DECLARE || record == OPEN || record == CLEARED))
#else
#define STORMY true
#define TIME_PASSES true
#endif

#define CONTROLLER(c)                                                                                        \
    :: atomic { STORMY && up[c] -> crash(c); order() }                                                       \
    :: atomic { !up[c] && IS_MEMBER(c) -> start(c); order() }                                                \
    :: atomic { QUORUM && IS_UP(c) && BEHIND(c) -> catch_up(c); order() }                                    \
    :: atomic { QUORUM && MAY_CONFIRM(c) -> confirmed[c] = true; order() }                                   \
    :: atomic { alive && message[c] == NOTHING && (!up[c] || MAY_SUPPORT(c)) -> ask(c); order() }            \
    :: atomic { message[c] != NOTHING && alive -> answered(c); order() }

active proctype world()
{
end:
    do
    CONTROLLER(0)
    CONTROLLER(1)
    CONTROLLER(2)
#ifdef LIVE
    :: atomic { TIME_PASSES && !(calm && lost) ->
                tick();
                calm_ticks = (calm -> calm_ticks + 1 : 0);
                assert(calm_ticks <= TTL_C); /* the host is declared lost within that time */
                order() }
#else
    :: atomic { TIME_PASSES -> tick(); order() }
#endif
    :: atomic { QUORUM && record == OPEN -> record = SUSPECT; forget_confirmations(); order() }
#ifdef CLEAR
    :: atomic { QUORUM && record == SUSPECT && !lost && alive -> record = CLEARED }
    :: atomic { QUORUM && record == CLEARED ->
                record = SUSPECT_AGAIN;
#ifndef BREAK_OLD_CONFIRMATIONS
                forget_confirmations();
#endif
                order() }
#endif
#ifdef CHANGES
    /* Rule 7: one at a time, and one TTL after a majority has applied the one before. */
    :: atomic { QUORUM && members < 2 && record == OPEN && IS_UP(0) && SETTLED -> members++; settled = 0 }
#endif
    :: atomic { QUORUM && IS_SUSPECT(record) && !lost && COUNT(HAS_CONFIRMED) >= ENOUGH -> lost = true }
#ifdef LIVE
    :: atomic { alive ->
                alive = false; /* what it counted and what it was sent is of no account any more */
                lease[0] = 0; lease[1] = 0; lease[2] = 0;
                vanish(0); vanish(1); vanish(2);
                ahead = TTL;
                order() }
    :: atomic { !alive && !calm -> calm = true }
#endif
    od
}

/* The promise. */
active proctype never_twice()
{
end:
    atomic { alive && lost && RUNS -> assert(false) }
}
