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
 * -DCLEAR: a suspected host that answers is cleared, and may be suspected again. -DRETURN: a lost one comes back, too,
 * and its VM may run elsewhere by then.
 * -DCHANGES=n -DSTART=mask: up to n times one controller joins or leaves; who does not count is asked, supports and applies as
 * others do; a question has its answer at once, if any. -DTWO: there are two of them at all, enough for two lists that share nobody with one between them.
 * -DRESTART, with CHANGES: the agent ends and starts again at any time; and VMs keep a deadline of the older list until it runs out.
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
#define NO 3 /* only with CHANGES: it tells who counts */

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
#ifdef RETURN
bool elsewhere;     /* its VM was given to another host when it was lost, */
bool named = true;  /* and whether the orders that its agent has name that VM: only then has it the lease's deadline */
#define NAMED named
#define ELSEWHERE elsewhere
#else
#define NAMED true
#define ELSEWHERE false
#endif

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
byte list[CHANGES + 1];  /* committed: who counts, one bit for each, */
byte members;            /* and the newest of them */
byte members_of[3];      /* the newest that each controller has applied, */
bool lost_of[3];         /* and whether the host is lost in it */
bool asked_newest[3];    /* in its present life that controller was asked by the agent when that knew of the newest */
bool settled[3];         /* the leader has its word: no host holds its support that could count in an older list */
byte lost_at;            /* the newest when the host was declared lost */
byte members_known;      /* the newest that the agent was told of */
#define HAS(which, c) ((list[which] >> (c)) & 1)
#define SIZE(which) (HAS(which, 0) + HAS(which, 1) + HAS(which, 2))
#define IS_MEMBER(c) HAS(members, c)
#define IS_KNOWN(c) HAS(members_known, c)
#define MAJORITY (SIZE(members) / 2 + 1)
#define MAJORITY_KNOWN (SIZE(members_known) / 2 + 1)
#define MAY_RUN(c) true
#define MAY_CATCH_UP(c) up[c]
#else
#define MAY_RUN(c) IS_MEMBER(c)
#define MAY_CATCH_UP(c) IS_UP(c)
#define IS_MEMBER(c) true
#define IS_KNOWN(c) true
#define MAJORITY 2
#define MAJORITY_KNOWN 2
#endif

#ifdef RESTART
byte page;          /* VMs may run for so long by a deadline that an agent before this one gave, or that was counted in an older list */
byte since = TTL_C; /* ticks since the last change */
#endif

#define COUNT(is) ((is(0) -> 1 : 0) + (is(1) -> 1 : 0) + (is(2) -> 1 : 0))
#define IS_UP(c) (IS_MEMBER(c) && up[c])
#define SUPPORTS(c) (IS_KNOWN(c) && lease[c] > 0)
#define HAS_CONFIRMED(c) (IS_MEMBER(c) && confirmed[c])
#define QUORUM (COUNT(IS_UP) >= MAJORITY)
#ifdef BREAK_ONE_SUPPORT
#define RUNS (COUNT(SUPPORTS) >= 1)
#else
#define RUNS (COUNT(SUPPORTS) >= MAJORITY_KNOWN) /* rule 2: the agent's VMs may execute */
#endif

#ifdef RESTART
#define LASTS(c) (IS_KNOWN(c) && lease[c] == TTL)
#define DEADLINE (COUNT(LASTS) >= MAJORITY_KNOWN -> TTL : (RUNS -> 1 : 0))
#define keep_page() page = MAX(page, DEADLINE)
#define MAY_RUN_ON (page > 0)
#ifdef BREAK_LOST_SOON
#define LONG_SINCE true
#else
#define LONG_SINCE (since == TTL_C) /* rule 7: nobody is lost so soon after a change */
#endif
#else
#define MAY_RUN_ON false
#define LONG_SINCE true
#endif

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

inline tick()
{
    tick_controller(0);
    tick_controller(1);
    tick_controller(2);
#ifdef RESTART
    since = (since < TTL_C -> since + 1 : TTL_C);
#endif
    if
    :: alive && ahead == TTL -> ahead = 0
    :: true ->
        ahead = (ahead < TTL -> ahead + 1 : TTL);
#ifdef RESTART
        page = (page > 0 -> page - 1 : 0);
#endif
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

#if defined(BREAK_CATCH_UP)
#define MAY_SUPPORT(c) (!IS_SUSPECT(applied[c]))
#elif defined(BREAK_SUPPORTS_SUSPECTS)
#define MAY_SUPPORT(c) caught[c]
#else
#define MAY_SUPPORT(c) (caught[c] && !IS_SUSPECT(applied[c])) /* rule 5 */
#endif

/* Rule 7: by who has not applied the list itself, the next agent could be supported without being told of it. */
#ifdef BREAK_HEEDS_EARLY
#define HEEDS(c) true
#else
#define HEEDS(c) (members_of[c] == members)
#endif

inline ask(c)
{
    if
    :: !up[c] -> message[c] = REFUSED
    :: !up[c] -> message[c] = REFUSED; age[c] = 1
    :: up[c] && MAY_SUPPORT(c) ->
        hold[c] = TTL_C;
        message[c] = YES
#ifdef CHANGES
    :: else -> message[c] = NO
    fi;
    asked_newest[c] = asked_newest[c] || (up[c] && members_known == members && members < CHANGES && HEEDS(c))
#else
    :: else -> skip
    fi
#endif
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
#ifdef RESTART
    if
    :: message[c] != REFUSED && members_of[c] > members_known -> keep_page()
    :: else -> skip
    fi;
#endif
#ifdef CHANGES
    members_known = (message[c] == REFUSED -> members_known : MAX(members_known, members_of[c]));
#endif
    if
    :: message[c] == YES -> lease[c] = MAX(lease[c], WORTH(c))
    :: message[c] == REFUSED && EXTENDS(c) -> lease[c] = MAX(lease[c], WORTH(c))
    :: else -> skip
    fi;
    vanish(c)
}

#ifdef CHANGES
inline exchange(c)
{
    ask(c);
    if
    :: true -> answered(c)
    :: message[c] != REFUSED -> vanish(c)
    fi
}
#endif

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
    asked_newest[c] = false;
    if
    :: true -> skip
    :: members_of[c] > 0 -> members_of[c] = 0
    fi;
    if
    :: true -> skip
    :: lost_of[c] && members_of[c] <= lost_at -> lost_of[c] = false
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
    lost_of[c] = lost
#endif
}

#ifdef CHANGES
#define BEHIND(c) (!caught[c] || applied[c] != record || members_of[c] != members || lost_of[c] != lost)
#else
#define BEHIND(c) (!caught[c] || applied[c] != record)
#endif

#ifdef BREAK_CONFIRM_AT_ONCE
#define RUN_OUT(c) true
#else
#define RUN_OUT(c) (hold[c] == 0) /* rules 4 and 5 */
#endif
#define MAY_CONFIRM(c) (!lost && MAY_CATCH_UP(c) && IS_SUSPECT(record) && applied[c] == record && !confirmed[c] && RUN_OUT(c))

/* Rule 7. A host that knows of the newest list counts in it; one that does not, and has no support from here, gets none without
 * being told. A lost one has to have none: it could count in the newest list, too. */
#ifdef CHANGES
#if defined(BREAK_SETTLED_AS_APPLIED)
#define SETTLES(c) true
#elif defined(BREAK_SETTLED_WITH_LOST)
#define SETTLES(c) (hold[c] == 0 || asked_newest[c])
#else
#define SETTLES(c) (hold[c] == 0 || (asked_newest[c] && !lost_of[c]))
#endif
#define MAY_SETTLE(c) (members < CHANGES && IS_UP(c) && members_of[c] == members && !settled[c] && SETTLES(c))
#define HAS_SETTLED(c) (IS_MEMBER(c) && settled[c])
#ifdef BREAK_CHANGES_IN_A_ROW
#define SETTLED true
#else
#define SETTLED (COUNT(HAS_SETTLED) >= MAJORITY)
#endif

inline change(c)
{
    list[members + 1] = list[members] ^ (1 << c);
    members++;
#ifdef RESTART
    since = 0;
#endif
    settled[0] = false;
    settled[1] = false;
    settled[2] = false;
    asked_newest[0] = false;
    asked_newest[1] = false;
    asked_newest[2] = false
}
#endif

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

#ifdef CHANGES
#define ASK(c) :: atomic { alive -> exchange(c) }
#define CHANGE(c)                                                                                            \
    :: atomic { QUORUM && MAY_SETTLE(c) -> settled[c] = true }                                               \
    :: atomic { QUORUM && members < CHANGES && SETTLED && (list[members] ^ (1 << c)) != 0 -> change(c) }
#else
#define ASK(c)                                                                                               \
    :: atomic { alive && message[c] == NOTHING && (!up[c] || MAY_SUPPORT(c)) -> ask(c); order() }            \
    :: atomic { message[c] != NOTHING && alive -> answered(c); order() }
#define CHANGE(c)
#endif
#define CONTROLLER(c)                                                                                        \
    :: atomic { STORMY && up[c] -> crash(c); order() }                                                       \
    :: atomic { !up[c] && MAY_RUN(c) -> start(c); order() }                                                  \
    :: atomic { QUORUM && MAY_CATCH_UP(c) && BEHIND(c) -> catch_up(c); order() }                             \
    :: atomic { QUORUM && MAY_CONFIRM(c) -> confirmed[c] = true; order() }                                   \
    ASK(c)

active proctype world()
{
#ifdef CHANGES
    list[0] = START;
#endif
end:
    do
    CONTROLLER(0)
    CONTROLLER(1)
    CHANGE(0)
    CHANGE(1)
#ifndef TWO
    CONTROLLER(2)
    CHANGE(2)
#endif
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
#ifdef RETURN
    :: atomic { QUORUM && record == SUSPECT && lost && alive -> /* rule 6 */
                record = CLEARED;
                lost = false;
#ifndef BREAK_RETURN
                named = !elsewhere
#endif
                }
    :: atomic { lost && !elsewhere -> elsewhere = true } /* or it is not, before the host is back */
#endif
    :: atomic { QUORUM && IS_SUSPECT(record) && !lost && LONG_SINCE && COUNT(HAS_CONFIRMED) >= ENOUGH ->
                lost = true;
#ifdef CHANGES
                lost_at = members;
                forget_confirmations() /* of no account any more */
#endif
                }
#ifdef RESTART
    :: atomic { alive -> /* the next agent knows nothing; the VMs keep their deadlines */
                keep_page();
                lease[0] = 0; lease[1] = 0; lease[2] = 0;
                members_known = 0 }
#endif
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
    atomic { alive && (lost || ELSEWHERE) && NAMED && (RUNS || MAY_RUN_ON) -> assert(false) }
}
