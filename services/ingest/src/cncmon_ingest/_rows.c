/* Frames of the plain usual form to rows of binary COPY, in one pass: what decode_sample, the checks of time and
 * rows.pack do for them together. Whatever is unusual is left to those, which remain the only definition: here "not
 * mine" is always a right answer, and a row must be theirs byte for byte (tests/test_fast.py compares).
 *
 * Nothing is read past the payload and nothing is kept from one call to the next. One file, longer than others here:
 * the compiler inlines the scanning, and from top to bottom each part uses those above it: scanning, numbers, extras,
 * times, fields, writing, the message.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030C0000
#include <Python.h>

#include <float.h>
#include <stdint.h>
#include <string.h>

/* One rounding for one multiplication of doubles, or the result is not what strtod would say. */
#if FLT_EVAL_METHOD != 0 || defined(__FAST_MATH__)
#error "needs doubles that are computed as doubles; without this module the rows are packed in Python"
#endif

#define FRAME_MAX 1024   /* Longer ones have limits of their own; and what is copied of a frame stays as small. */
#define FRAMES_MAX 10000 /* As frames.FRAMES_MAX. */
#define DEPTH_MAX 8
#define KEYS_MAX 32 /* Of one object in extras: each is compared with those before it. */
#define TICK_US 10000000 /* As rows.TICK_US. */
#define SEEN 512    /* Machines of one message that are told apart without asking the set. */

typedef unsigned char Byte;
typedef enum { FAILED = -1, NOT_MINE = 0, MINE = 1 } Answer; /* FAILED: an exception is set. */

typedef struct {
    const Byte *at, *end;
    int blanks; /* White space passed over so far. */
} Cursor;

typedef enum { MACHINE, TIME, FLOAT, INT, TEXT, STATE, EXTRAS } Kind;

typedef struct {
    const char *name;
    Byte length;
    Byte kind;
} Field;

#define FIELD(name, kind) {name, sizeof(name) - 1, kind}
/* In the order of Sample, which is how agents write them, and of the columns but for the first two. */
static const Field FIELDS[] = {
    FIELD("machine_id", MACHINE),
    FIELD("timestamp", TIME),
    FIELD("temperature", FLOAT),
    FIELD("spindle_speed", FLOAT),
    FIELD("x_pos_mm", FLOAT),
    FIELD("y_pos_mm", FLOAT),
    FIELD("z_pos_mm", FLOAT),
    FIELD("feed_rate_actual", FLOAT),
    FIELD("spindle_load_percent", FLOAT),
    FIELD("machine_state", STATE),
    FIELD("active_program_line", INT),
    FIELD("total_power_kw", FLOAT),
    FIELD("mode", TEXT),
    FIELD("program", TEXT),
    FIELD("part_count", INT),
    FIELD("tool_number", INT),
    FIELD("anomaly_score", FLOAT),
    FIELD("extras", EXTRAS),
};
#define FIELD_COUNT ((int)(sizeof FIELDS / sizeof *FIELDS))
#define REQUIRED 0xfu /* The first four. */
#define FIRST_MEASURED 2

/* Every column's length and value; texts and extras are no longer in the row than in the frame. */
#define ROW_MAX (2 + FIELD_COUNT * 12 + 1 + FRAME_MAX)

static const char *const STATES[] = {"running", "idle", "alarm", "hold", "offline"};
#define STATE_COUNT ((int)(sizeof STATES / sizeof *STATES))

typedef struct {
    const Byte *text; /* NULL: `bits` is the value. */
    uint64_t bits;    /* Or how long the text is. */
    int given;        /* 0: absent or null. */
} Slot;

typedef struct {
    Slot slots[FIELD_COUNT];
    int64_t time_us; /* As rows.microseconds. */
    int extras_blanks;
} Sample;

typedef struct {
    uint64_t mantissa; /* Of the digits; meaningful up to 19 of them. */
    int digits;        /* Significant ones: without leading zeros. */
    int fraction;      /* Digits behind the point. */
    int exponent;
    int negative, pointed, scientific;
} Number;

static const double TENS[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                              1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
#define EXACT_TENS 22
#define EXACT_DIGITS 15
#define SHORTEST_DIGITS 17 /* No double needs more. */
#define NUMBER_CHARS_MAX 40

static inline int is_digit(const Byte *at, const Byte *end) { return at < end && (unsigned)(*at - '0') < 10; }

static inline void skip_blanks(Cursor *c)
{
    while (c->at < c->end && *c->at <= ' ' && (*c->at == ' ' || *c->at == '\n' || *c->at == '\r' || *c->at == '\t')) {
        c->at++;
        c->blanks++;
    }
}

static inline int take(Cursor *c, char sign)
{
    if (c->at == c->end || *c->at != (Byte)sign)
        return 0;
    c->at++;
    return 1;
}

/* `sign` with white space around it. */
static inline int take_between(Cursor *c, char sign)
{
    skip_blanks(c);
    if (!take(c, sign))
        return 0;
    skip_blanks(c);
    return 1;
}

static int take_word(Cursor *c, const char *word, size_t length)
{
    if ((size_t)(c->end - c->at) < length || memcmp(c->at, word, length) != 0)
        return 0;
    c->at += length;
    return 1;
}

/* A string of printable ASCII without escapes: what it means is what stands there. */
static inline int take_string(Cursor *c, const Byte **text, size_t *length)
{
    if (!take(c, '"'))
        return 0;
    const Byte *at = c->at, *end = c->end;
    while (at < end && *at != '"') {
        if (*at < 0x20 || *at > 0x7e || *at == '\\')
            return 0;
        at++;
    }
    if (at == end)
        return 0;
    *text = c->at;
    *length = (size_t)(at - c->at);
    c->at = at + 1;
    return 1;
}

/* A number by JSON's grammar. A digit behind a leading zero is left, where no separator is and the caller stops. */
static inline int take_number(Cursor *c, Number *n)
{
    const Byte *at = c->at, *end = c->end, *first;
    uint64_t mantissa = 0;
    n->fraction = n->exponent = n->pointed = n->scientific = 0;
    n->negative = at < end && *at == '-';
    at += n->negative;
    if (!is_digit(at, end))
        return 0;
    first = at;
    if (*at == '0')
        first = ++at;
    else
        for (; is_digit(at, end); at++)
            mantissa = mantissa * 10 + (uint64_t)(*at - '0');
    n->digits = (int)(at - first);
    if (at < end && *at == '.') {
        const Byte *point = ++at;
        if (!n->digits)
            while (at < end && *at == '0')
                at++;
        for (first = at; is_digit(at, end); at++)
            mantissa = mantissa * 10 + (uint64_t)(*at - '0');
        n->digits += (int)(at - first);
        n->fraction = (int)(at - point);
        n->pointed = 1;
        if (!n->fraction)
            return 0;
    }
    if (at < end && (*at == 'e' || *at == 'E')) {
        int negative = ++at < end && *at == '-';
        if (at < end && (*at == '-' || *at == '+'))
            at++;
        if (!is_digit(at, end))
            return 0;
        for (; is_digit(at, end); at++)
            if (n->exponent < 1000)
                n->exponent = n->exponent * 10 + (*at - '0');
        if (negative)
            n->exponent = -n->exponent;
        n->scientific = 1;
    }
    n->mantissa = mantissa;
    c->at = at;
    return 1;
}

static int take_int(Cursor *c, uint64_t *bits)
{
    Number n;
    if (!take_number(c, &n) || n.pointed || n.scientific || n.digits > 18 || (n.negative && !n.mantissa))
        return 0;
    *bits = n.negative ? 0 - n.mantissa : n.mantissa;
    return 1;
}

#ifdef __SIZEOF_INT128__
#define DIVIDED_PLACES_MAX 19
/* `mantissa` / 10^places in whole numbers: 63 bits or more of the quotient, with what is left over in the last one, so
 * that the conversion to double is the one rounding. A float of 32 bits has 16 or 17 digits once it is a double.
 */
static inline double divide(uint64_t mantissa, int places)
{
    uint64_t divisor = 1, scale;
    double power;
    for (int place = 0; place < places; place++)
        divisor *= 10;
    int up = __builtin_clzll(mantissa), down = __builtin_clzll(divisor);
    unsigned __int128 numerator = (unsigned __int128)(mantissa << up) << 63;
    divisor <<= down;
    uint64_t quotient = (uint64_t)(numerator / divisor);
    quotient |= numerator % divisor != 0;
    scale = (uint64_t)(1023 + down - up - 63) << 52;
    memcpy(&power, &scale, sizeof power);
    return (double)quotient * power;
}
#else
#define DIVIDED_PLACES_MAX 0
static inline double divide(uint64_t mantissa, int Py_UNUSED(places)) { return (double)mantissa; }
#endif

/* Other numbers of 16 and 17 digits: CPython's own correctly rounding reader, on a copy that ends. */
static Answer read_carefully(const Byte *text, size_t length, double *value)
{
    char copy[NUMBER_CHARS_MAX + 1];
    if (length > NUMBER_CHARS_MAX)
        return NOT_MINE;
    memcpy(copy, text, length);
    copy[length] = '\0';
    *value = PyOS_string_to_double(copy, NULL, NULL);
    return *value == -1.0 && PyErr_Occurred() ? FAILED : MINE;
}

static inline Answer take_float(Cursor *c, uint64_t *bits)
{
    const Byte *start = c->at;
    Number n;
    double value;
    if (!take_number(c, &n))
        return NOT_MINE;
    int tens = n.exponent - n.fraction;
    if (n.digits <= EXACT_DIGITS && tens <= EXACT_TENS && tens >= -EXACT_TENS) {
        /* "-0" is read as an int, which has no sign. */
        if (n.negative && !n.mantissa && !n.pointed)
            return NOT_MINE;
        /* Both are exact, so there is one rounding, the right one (Clinger 1990). */
        value = tens < 0 ? (double)n.mantissa / TENS[-tens] : (double)n.mantissa * TENS[tens];
        value = n.negative ? -value : value;
    }
    else if (n.digits > EXACT_DIGITS && n.digits <= SHORTEST_DIGITS && tens < 0 && -tens <= DIVIDED_PLACES_MAX) {
        value = divide(n.mantissa, -tens);
        value = n.negative ? -value : value;
    }
    else {
        if (n.digits > SHORTEST_DIGITS || n.digits + tens > 300 || n.digits + tens < -290)
            return NOT_MINE;
        Answer answer = read_carefully(start, (size_t)(c->at - start), &value);
        if (answer != MINE)
            return answer;
    }
    memcpy(bits, &value, sizeof value);
    return MINE;
}

static int take_object(Cursor *c, int depth);

/* Whether a number of 16 or 17 digits is what a double is written as. A register of 32 bits gives such numbers. */
static int is_shortest(const Byte *text, size_t length, const Number *n)
{
    double value;
    if (n->fraction <= DIVIDED_PLACES_MAX)
        value = n->negative ? -divide(n->mantissa, n->fraction) : divide(n->mantissa, n->fraction);
    else if (read_carefully(text, length, &value) != MINE) {
        PyErr_Clear();
        return 0;
    }
    char *shortest = PyOS_double_to_string(value, 'r', 0, Py_DTSF_ADD_DOT_0, NULL);
    if (!shortest) {
        PyErr_Clear();
        return 0;
    }
    int same = strlen(shortest) == length && memcmp(shortest, text, length) == 0;
    PyMem_Free(shortest);
    return same;
}

/* A number that is written again as it stands: a whole one, or the shortest form of a double, with neither exponent nor
 * superfluous zeros. No two decimals of up to 15 digits are the same double, so what is left is the shortest.
 */
static int take_canonical_number(Cursor *c)
{
    const Byte *start = c->at;
    Number n;
    if (!take_number(c, &n) || n.scientific)
        return 0;
    if (!n.pointed)
        return n.digits <= 18 && !(n.negative && !n.mantissa);
    if (c->at[-1] == '0' && n.fraction > 1)
        return 0;
    /* Well above where msgspec begins to write exponents, 0.000009; digits end well below 1e16, where it does again. */
    if (n.digits > SHORTEST_DIGITS || n.fraction - n.digits > 3)
        return 0;
    return n.digits <= EXACT_DIGITS || is_shortest(start, (size_t)(c->at - start), &n);
}

/* A value that is encoded again as it stands, but for white space. */
static int take_value(Cursor *c, int depth)
{
    const Byte *text;
    size_t length;
    if (c->at == c->end)
        return 0;
    switch (*c->at) {
    case '"':
        return take_string(c, &text, &length);
    case '{':
        return take_object(c, depth + 1);
    case '[':
        if (depth >= DEPTH_MAX)
            return 0;
        c->at++;
        skip_blanks(c);
        if (take(c, ']'))
            return 1;
        do {
            if (!take_value(c, depth + 1))
                return 0;
        } while (take_between(c, ','));
        return take(c, ']');
    case 't':
        return take_word(c, "true", 4);
    case 'f':
        return take_word(c, "false", 5);
    case 'n':
        return take_word(c, "null", 4);
    default:
        return take_canonical_number(c);
    }
}

static int take_object(Cursor *c, int depth)
{
    struct {
        const Byte *text;
        size_t length;
    } keys[KEYS_MAX];
    int count = 0;
    if (depth > DEPTH_MAX)
        return 0;
    c->at++;
    skip_blanks(c);
    if (take(c, '}'))
        return 1;
    do {
        if (count == KEYS_MAX || !take_string(c, &keys[count].text, &keys[count].length))
            return 0;
        for (int other = 0; other < count; other++)
            if (keys[other].length == keys[count].length &&
                memcmp(keys[other].text, keys[count].text, keys[count].length) == 0)
                return 0;
        count++;
        if (!take_between(c, ':') || !take_value(c, depth))
            return 0;
    } while (take_between(c, ','));
    return take(c, '}');
}

static inline int two_digits(const Byte *text, int *bad)
{
    unsigned tens = (unsigned)(text[0] - '0'), ones = (unsigned)(text[1] - '0');
    *bad |= tens > 9 || ones > 9;
    return (int)(tens * 10 + ones);
}

static int is_leap(int year) { return year % 4 == 0 && (year % 100 != 0 || year % 400 == 0); }

/* YYYY-MM-DDTHH:MM:SS, a point and up to six digits if need be, then Z or +00:00. */
static int read_time(const Byte *text, size_t length, Sample *sample)
{
    static const Byte DAYS[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    static const short BEFORE[] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334};
    enum { SECONDS_END = 19, EPOCH_YEAR = 2000 };
    int bad = 0, micros = 0;
    if (length <= SECONDS_END)
        return 0;
    int year = two_digits(text, &bad) * 100 + two_digits(text + 2, &bad);
    int month = two_digits(text + 5, &bad), day = two_digits(text + 8, &bad);
    int hour = two_digits(text + 11, &bad), minute = two_digits(text + 14, &bad), second = two_digits(text + 17, &bad);
    bad |= text[4] != '-' || text[7] != '-' || text[10] != 'T' || text[13] != ':' || text[16] != ':';
    if (bad || year < 1971 || year > 2199 || month < 1 || month > 12 || hour > 23 || minute > 59 || second > 59)
        return 0;
    int leap = is_leap(year);
    if (day < 1 || day > DAYS[month - 1] + (leap && month == 2))
        return 0;

    const Byte *at = text + SECONDS_END, *end = text + length;
    if (*at == '.') {
        const Byte *point = ++at;
        for (; is_digit(at, end) && at - point < 6; at++)
            micros = micros * 10 + (*at - '0');
        if (at == point)
            return 0;
        for (int places = (int)(at - point); places < 6; places++)
            micros *= 10;
    }
    if (!(end - at == 1 && *at == 'Z') && !(end - at == 6 && memcmp(at, "+00:00", 6) == 0))
        return 0;

    int before = year - 1; /* Leap days up to the end of the year before, less those up to the end of 1999. */
    int leap_days = before / 4 - before / 100 + before / 400 - (1999 / 4 - 1999 / 100 + 1999 / 400);
    int days = (year - EPOCH_YEAR) * 365 + leap_days + BEFORE[month - 1] + (leap && month > 2) + day - 1;
    sample->time_us = ((int64_t)days * 86400 + hour * 3600 + minute * 60 + second) * 1000000 + micros;
    return 1;
}

static int is_state(const Byte *text, size_t length)
{
    for (int state = 0; state < STATE_COUNT; state++)
        if (strlen(STATES[state]) == length && memcmp(STATES[state], text, length) == 0)
            return 1;
    return 0;
}

/* The number of the field whose name begins here; -1: none. */
static inline int take_name(Cursor *c, int expected)
{
    size_t left = (size_t)(c->end - c->at);
    for (int tried = 0; tried < FIELD_COUNT; tried++) {
        int number = expected + tried < FIELD_COUNT ? expected + tried : expected + tried - FIELD_COUNT;
        const Field *field = &FIELDS[number];
        if (left > field->length && c->at[field->length] == '"' && memcmp(c->at, field->name, field->length) == 0) {
            c->at += field->length + 1;
            return number;
        }
    }
    return -1;
}

static inline Answer take_field(Cursor *c, int number, Sample *sample)
{
    Slot *slot = &sample->slots[number];
    Kind kind = (Kind)FIELDS[number].kind;
    size_t length = 0;
    if (c->at < c->end && *c->at == 'n')
        return kind != MACHINE && kind != TIME && take_word(c, "null", 4);
    slot->given = 1;
    switch (kind) {
    case FLOAT:
        return take_float(c, &slot->bits);
    case INT:
        return take_int(c, &slot->bits);
    case EXTRAS: {
        int blanks = c->blanks;
        slot->text = c->at;
        if (c->at == c->end || *c->at != '{' || !take_object(c, 1))
            return NOT_MINE;
        sample->extras_blanks = c->blanks - blanks;
        slot->bits = (uint64_t)(c->at - slot->text);
        /* `{}` says nothing and is NULL. */
        slot->given = slot->bits - (uint64_t)sample->extras_blanks > 2;
        return MINE;
    }
    default:
        if (!take_string(c, &slot->text, &length))
            return NOT_MINE;
        slot->bits = length;
    }
    if (kind == MACHINE)
        return length >= 1 && length <= 128;
    if (kind == TIME)
        return read_time(slot->text, length, sample);
    return kind == TEXT || is_state(slot->text, length);
}

/* One frame. Its sample is whole where the answer is MINE. */
static Answer read_sample(const Byte *at, size_t length, Sample *sample)
{
    Cursor cursor = {at, at + length, 0}, *c = &cursor;
    unsigned seen = 0;
    int number = -1;
    if (length > FRAME_MAX || !take_between(c, '{'))
        return NOT_MINE;
    memset(sample, 0, sizeof *sample);
    do {
        if (!take(c, '"') || (number = take_name(c, number + 1 < FIELD_COUNT ? number + 1 : 0)) < 0)
            return NOT_MINE;
        if (seen & 1u << number || !take_between(c, ':'))
            return NOT_MINE;
        seen |= 1u << number;
        Answer answer = take_field(c, number, sample);
        if (answer != MINE)
            return answer;
    } while (take_between(c, ','));
    if (!take_between(c, '}') || c->at != c->end || (seen & REQUIRED) != REQUIRED)
        return NOT_MINE;
    return MINE;
}

static inline Byte *put32(Byte *out, uint32_t value)
{
    for (int place = 0; place < 4; place++)
        out[place] = (Byte)(value >> (24 - 8 * place));
    return out + 4;
}

static inline Byte *put64(Byte *out, uint64_t value)
{
    for (int place = 0; place < 8; place++)
        out[place] = (Byte)(value >> (56 - 8 * place));
    return out + 8;
}

static inline Byte *put_text(Byte *out, const Byte *text, size_t length)
{
    out = put32(out, (uint32_t)length);
    memcpy(out, text, length);
    return out + length;
}

static Byte *put_extras(Byte *out, const Slot *slot, int blanks)
{
    size_t length = (size_t)slot->bits;
    out = put32(out, (uint32_t)(1 + length - (size_t)blanks));
    *out++ = 1; /* The version of jsonb. */
    if (!blanks) {
        memcpy(out, slot->text, length);
        return out + length;
    }
    int quoted = 0;
    for (size_t place = 0; place < length; place++) {
        Byte sign = slot->text[place];
        quoted ^= sign == '"';
        if (quoted || sign > ' ')
            *out++ = sign;
    }
    return out;
}

/* One row, as rows.pack writes it. */
static size_t write_row(Byte *row, const Sample *sample)
{
    Byte *out = row;
    *out++ = 0;
    *out++ = FIELD_COUNT;
    out = put64(put32(out, 8), (uint64_t)sample->time_us);
    out = put_text(out, sample->slots[0].text, (size_t)sample->slots[0].bits);
    for (int number = FIRST_MEASURED; number < FIELD_COUNT; number++) {
        const Slot *slot = &sample->slots[number];
        if (!slot->given)
            out = put32(out, 0xffffffffu);
        else if (!slot->text)
            out = put64(put32(out, 8), slot->bits);
        else if (FIELDS[number].kind == EXTRAS)
            out = put_extras(out, slot, sample->extras_blanks);
        else
            out = put_text(out, slot->text, (size_t)slot->bits);
    }
    return (size_t)(out - row);
}

/* What a call gives back, and what it remembers so as not to ask the sets for each frame. */
typedef struct {
    PyObject *rows, *machines, *ticks, *left;
    int64_t tick;
    struct {
        const Byte *text;
        size_t length;
    } seen[SEEN];
} Taken;

static int add(PyObject *set, PyObject *item)
{
    int done = item ? PySet_Add(set, item) : -1;
    Py_XDECREF(item);
    return done;
}

static int add_machine(Taken *taken, const Slot *machine)
{
    size_t length = (size_t)machine->bits;
    const Byte *text = machine->text;
    unsigned hash = (unsigned)length;
    for (size_t place = length > 8 ? length - 8 : 0; place < length; place++)
        hash = hash * 31 + text[place];
    hash %= SEEN;
    if (taken->seen[hash].length == length && memcmp(taken->seen[hash].text, text, length) == 0)
        return 0;
    taken->seen[hash].text = text;
    taken->seen[hash].length = length;
    return add(taken->machines, PyUnicode_FromStringAndSize((const char *)text, (Py_ssize_t)length));
}

static int add_tick(Taken *taken, int64_t time_us)
{
    int64_t tick = time_us / TICK_US - (time_us % TICK_US < 0);
    if (taken->tick == tick)
        return 0;
    taken->tick = tick;
    return add(taken->ticks, PyLong_FromLongLong(tick));
}

static int leave(Taken *taken, Py_ssize_t number)
{
    PyObject *item = PyLong_FromSsize_t(number);
    int done = item ? PyList_Append(taken->left, item) : -1;
    Py_XDECREF(item);
    return done;
}

/* Take one frame, or leave it; -1: an exception is set. */
static int take_frame(Taken *taken, Py_ssize_t number, const Byte *at, size_t length, int64_t oldest, int64_t newest)
{
    Byte row[ROW_MAX];
    Sample sample;
    PyObject *item = NULL;
    Answer answer = read_sample(at, length, &sample);
    if (answer == FAILED)
        return -1;
    if (answer == MINE && sample.time_us >= oldest && sample.time_us <= newest) {
        size_t size = write_row(row, &sample);
        if (add_machine(taken, &sample.slots[0]) < 0 || add_tick(taken, sample.time_us) < 0)
            return -1;
        item = PyBytes_FromStringAndSize((const char *)row, (Py_ssize_t)size);
        if (!item)
            return -1;
    }
    else {
        if (leave(taken, number) < 0)
            return -1;
        item = Py_NewRef(Py_None);
    }
    return PyList_SetItem(taken->rows, number, item);
}

static inline size_t frame_length(const Byte *at)
{
    return (size_t)at[0] << 24 | (size_t)at[1] << 16 | (size_t)at[2] << 8 | at[3];
}

/* How many frames the payload is made of; 0 where it is not made of whole frames alone, or of too many. */
static Py_ssize_t count_frames(const Byte *at, const Byte *end)
{
    Py_ssize_t count = 0;
    for (; at < end; count++) {
        if (end - at < 4 || count == FRAMES_MAX)
            return 0;
        size_t length = frame_length(at);
        at += 4;
        if (length > (size_t)(end - at))
            return 0;
        at += length;
    }
    return count;
}

static int take_frames(Taken *taken, Py_ssize_t count, const Byte *at, int64_t oldest, int64_t newest)
{
    for (Py_ssize_t number = 0; number < count; number++) {
        size_t length = frame_length(at);
        at += 4;
        if (take_frame(taken, number, at, length, oldest, newest) < 0)
            return -1;
        at += length;
    }
    return 0;
}

static PyObject *pack(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t arg_count)
{
    char *payload;
    Py_ssize_t size;
    if (arg_count != 3) {
        PyErr_SetString(PyExc_TypeError, "pack() takes a payload, the oldest and the newest time");
        return NULL;
    }
    if (PyBytes_AsStringAndSize(args[0], &payload, &size) < 0)
        return NULL;
    int64_t oldest = PyLong_AsLongLong(args[1]);
    if (oldest == -1 && PyErr_Occurred())
        return NULL;
    int64_t newest = PyLong_AsLongLong(args[2]);
    if (newest == -1 && PyErr_Occurred())
        return NULL;
    Py_ssize_t count = count_frames((const Byte *)payload, (const Byte *)payload + size);
    if (!count)
        Py_RETURN_NONE;

    Taken taken;
    memset(&taken, 0, sizeof taken);
    taken.rows = PyList_New(count);
    taken.machines = PySet_New(NULL);
    taken.ticks = PySet_New(NULL);
    taken.tick = INT64_MIN;
    taken.left = PyList_New(0);
    PyObject *result = NULL;
    if (taken.rows && taken.machines && taken.ticks && taken.left &&
        take_frames(&taken, count, (const Byte *)payload, oldest, newest) == 0)
        result = PyTuple_Pack(4, taken.rows, taken.machines, taken.ticks, taken.left);
    Py_XDECREF(taken.rows);
    Py_XDECREF(taken.machines);
    Py_XDECREF(taken.ticks);
    Py_XDECREF(taken.left);
    return result;
}

/* What it was made for, so that fast.py can tell an extension of another version: names in the order of Sample. */
static int add_form(PyObject *module)
{
    PyObject *fields = PyTuple_New(FIELD_COUNT), *states = PyTuple_New(STATE_COUNT);
    int done = fields && states ? 0 : -1;
    for (int number = 0; !done && number < FIELD_COUNT; number++) {
        PyObject *name = PyUnicode_FromString(FIELDS[number].name);
        done = name ? PyTuple_SetItem(fields, number, name) : -1;
    }
    for (int number = 0; !done && number < STATE_COUNT; number++) {
        PyObject *name = PyUnicode_FromString(STATES[number]);
        done = name ? PyTuple_SetItem(states, number, name) : -1;
    }
    if (!done)
        done = PyModule_AddObjectRef(module, "FIELDS", fields);
    if (!done)
        done = PyModule_AddObjectRef(module, "STATES", states);
    if (!done)
        done = PyModule_AddIntConstant(module, "TICK_US", TICK_US);
    Py_XDECREF(fields);
    Py_XDECREF(states);
    return done;
}

static PyMethodDef METHODS[] = {
    {"pack", (PyCFunction)(void (*)(void))pack, METH_FASTCALL, PyDoc_STR("See _rows.pyi.")},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot SLOTS[] = {
    {Py_mod_exec, add_form},
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
    {0, NULL},
};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_rows",
    .m_doc = PyDoc_STR("Frames of the usual form to rows of binary COPY, in one pass."),
    .m_methods = METHODS,
    .m_slots = SLOTS,
};

PyMODINIT_FUNC PyInit__rows(void) { return PyModuleDef_Init(&MODULE); }
