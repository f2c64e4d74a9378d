/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The per-event work of the event path, without Python: so that it can be fuzzed alone (tests/fuzz) and run with
 * the interpreter's lock released. Everything here takes bytes that somebody else chose and never reads outside
 * of what it was given. Little-endian machines only, as the records are.
 */
#ifndef VEDETTE_CORE_H
#define VEDETTE_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "records are little-endian and are read as they are"
#endif

#define VD_MAX_TYPES 256
#define VD_MAX_TAILS 8
#define VD_MAX_BATCH ((size_t)1 << 30) /* keeps heap offsets well inside uint32 */

static inline uint16_t vd_load16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return v; }
static inline uint32_t vd_load32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static inline uint64_t vd_load64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }

/* ---- split: records of one batch into columns (_core.c) ---- */

/* How one type's records look in the batch's schema version; fixed == 0: no such type. */
struct vd_layout {
	uint16_t fixed;      /* bytes before the tails, a multiple of 8 */
	uint16_t lengths_at; /* offset of the tail lengths */
	uint16_t tails;
	uint16_t limits[VD_MAX_TAILS];
};

enum vd_problem {
	VD_OK = 0,
	VD_SHORT_HEADER,  /* value: bytes left */
	VD_SIZE_ALIGNMENT, /* value: size */
	VD_SIZE_BEYOND,   /* value: size, bound: bytes left */
	VD_UNKNOWN_TYPE,  /* value: type */
	VD_SIZE_BELOW,    /* value: size, bound: fixed size */
	VD_TAIL_LIMIT,    /* value: length, bound: limit */
	VD_SIZE_TAILS,    /* value: size, bound: what the tails make it */
};

struct vd_error {
	enum vd_problem problem;
	uint64_t index;  /* of the record */
	uint64_t offset; /* of the record */
	uint32_t type;
	uint32_t tail;
	uint64_t value, bound;
};

struct vd_counts {
	uint64_t records;
	uint32_t rows[VD_MAX_TYPES];
	uint32_t tail_bytes[VD_MAX_TYPES][VD_MAX_TAILS];
};

struct vd_heap_out {
	uint8_t *data;     /* rows + tail_bytes + 1 bytes */
	uint32_t *offsets; /* rows + 1 */
	uint32_t size;
	uint32_t at;
};

struct vd_columns_out {
	uint8_t *fixed;  /* rows * layout.fixed bytes */
	uint32_t *order; /* rows */
	uint32_t row;
	struct vd_heap_out tails[VD_MAX_TAILS];
};

/* Checks everything and counts what the columns will need. False: *error says what is wrong where. */
bool vd_split_count(const uint8_t *records, size_t size, const struct vd_layout *layouts, struct vd_counts *counts,
		    struct vd_error *error);
/* Fills the columns of records that vd_split_count has accepted, unchanged since. */
void vd_split_copy(const uint8_t *records, size_t size, const struct vd_layout *layouts, struct vd_columns_out *outs);

/* Number of records and least and greatest time, by their headers alone. */
bool vd_scan(const uint8_t *records, size_t size, uint64_t *count, uint64_t *first, uint64_t *last,
	     struct vd_error *error);

/* ---- hashes (_core.c) ---- */

#define VD_FNV_OFFSET 0xcbf29ce484222325ull
#define VD_FNV_PRIME 0x100000001b3ull

static inline uint64_t vd_fnv1a(const uint8_t *p, size_t n)
{
	uint64_t h = VD_FNV_OFFSET;
	for (size_t i = 0; i < n; i++)
		h = (h ^ p[i]) * VD_FNV_PRIME;
	return h;
}

/* A heap: tail i is data[offsets[i] .. offsets[i+1] - 1); see columns.py. */
struct vd_heap {
	const uint8_t *data;
	size_t size;
	const uint8_t *offsets; /* rows + 1 uint32, any alignment */
	size_t rows;
};

/* Bounds of tail `row`; false when the offsets do not lie in the heap. */
static inline bool vd_heap_tail(const struct vd_heap *heap, size_t row, const uint8_t **p, size_t *n)
{
	uint32_t from = vd_load32(heap->offsets + 4 * row), to = vd_load32(heap->offsets + 4 * row + 4);
	if (from >= to || to > heap->size)
		return false;
	*p = heap->data + from;
	*n = to - from - 1;
	return true;
}

/* ---- ring (_core.c) ---- */

#define VD_RING_BUSY 0x80000000u    /* include/uapi/linux/bpf.h: BPF_RINGBUF_BUSY_BIT */
#define VD_RING_DISCARD 0x40000000u /* BPF_RINGBUF_DISCARD_BIT */
#define VD_RING_HEADER 8            /* BPF_RINGBUF_HDR_SZ */
#define VD_RECORD_BOUND 65536       /* no record is longer; the schema's bound is far below */

struct vd_ring {
	const uint8_t *producer; /* page holding the producer's position */
	const uint8_t *data;     /* 2 * size bytes: the data, mapped twice in a row */
	uint64_t size;           /* a power of two */
};

struct vd_executable {
	uint64_t ino, ctime;
	uint32_t dev, pid;
	uint32_t path_at, path_size; /* in vd_executables.paths */
};

#define VD_SEEN_SLOTS 16384u
#define VD_NEW_EXECUTABLES 1024u
#define VD_NEW_PATHS (256u << 10)

struct vd_seen { uint64_t ino, ctime, dev; };

/* Executables of which an exec or mmap record was drained; the new ones wait to be fetched. */
struct vd_executables {
	struct vd_seen seen[VD_SEEN_SLOTS];
	uint32_t seen_count;
	uint32_t count;
	uint32_t paths_size;
	struct vd_executable fresh[VD_NEW_EXECUTABLES];
	uint8_t paths[VD_NEW_PATHS];
};

enum vd_drain_status { VD_DRAIN_OK = 0, VD_DRAIN_CORRUPT };

struct vd_drained {
	uint64_t position; /* up to where samples were taken or skipped */
	uint64_t records;
	uint64_t bytes;
	uint64_t malformed; /* samples that hold no record; skipped */
};

uint64_t vd_ring_producer(const struct vd_ring *ring);
/* Copies whole records from position `from` into out[capacity] until it is full, the ring is empty or a sample is
 * not finished. capacity must be at least VD_RECORD_BOUND or all that is pending. executables may be NULL. Malformed
 * samples before position `judged` are not counted again. */
enum vd_drain_status vd_ring_drain(const struct vd_ring *ring, uint64_t from, uint8_t *out, size_t capacity,
				   struct vd_executables *executables, uint64_t judged, struct vd_drained *drained);
void vd_note_executable(struct vd_executables *executables, const uint8_t *record, uint32_t size);

/* ---- DNS (_dns.c) ---- */

#define VD_DNS_NAME 256 /* RFC 1035 3.1: 255 bytes on the wire, so at most 253 as text */

/* The name at *at as lower-case text without its final dot; *at moves behind it. Follows compression pointers, which
 * must point backwards. False: malformed or cut short. */
bool vd_dns_name(const uint8_t *p, size_t n, size_t *at, uint8_t name[VD_DNS_NAME], size_t *size);
/* The first question's name. */
bool vd_dns_question(const uint8_t *p, size_t n, uint8_t name[VD_DNS_NAME], size_t *size);
/* Whether one of the questions' names, or a parent domain of it, has its FNV-1a hash in table[count], sorted. */
bool vd_dns_match(const uint8_t *p, size_t n, const uint8_t *table, size_t count);

/* ---- matcher (_matcher.c) ---- */

struct vd_matcher;
struct vd_pairs { uint32_t *rows, *literals; size_t count, room; };

/* Literals concatenated, literal i being text[at[i] .. at[i+1]). NULL: out of memory. */
struct vd_matcher *vd_matcher_new(const uint8_t *text, const uint32_t *at, uint32_t count);
void vd_matcher_free(struct vd_matcher *matcher);
/* False: out of memory. The caller frees the two arrays. */
bool vd_matcher_search(const struct vd_matcher *matcher, const struct vd_heap *heap, struct vd_pairs *pairs);

/* ---- sieve (_sieve.c) ---- */

enum vd_mask_op {
	VD_MASK_EQ, VD_MASK_NE, VD_MASK_LT, VD_MASK_LE, VD_MASK_GT, VD_MASK_GE,
	VD_MASK_ANY_BITS, VD_MASK_ALL_BITS, VD_MASK_NO_BITS,
	VD_MASK_IN, VD_MASK_NOT_IN, /* sorted uint64 at set_at */
	VD_MASK_NET,                /* networks at set_at, the address family at offset `value` */
	VD_MASK_WATCHED,            /* the set number `value` of those given with each call */
	VD_MASK_ALWAYS, VD_MASK_NEVER,
	VD_MASK_OPS
};

#define VD_NETWORK_SIZE 40 /* u32 family, bits[4], masks[4], padding */

struct vd_mask {
	uint16_t at; /* of the field in a row */
	uint8_t width;
	uint8_t is_signed;
	uint32_t op;
	uint32_t set_at, set_count; /* set_at in uint64 */
	uint64_t value;
};

/* Numbers of masks and groups lie in `indexes`. The first group is the one that leads to the plan. */
struct vd_plan { uint32_t masks_at, masks, groups_at, groups, answer, plain; };
/* Literals that are too short to be searched everywhere are looked for only in rows that pass the rest of a plan. */
struct vd_group { uint32_t plans_at, plans, joined, late_at, late; };
struct vd_late { uint32_t tail, text_at, size; }; /* text: lower case */

struct vd_sieve {
	size_t row_size;
	const struct vd_mask *masks;
	const struct vd_plan *plans;
	const struct vd_group *groups;
	const uint32_t *literals; /* literal_count + 1: where the numbers of a literal's groups begin in `indexes` */
	const uint32_t *indexes;
	const uint8_t *values; /* uint64 */
	const struct vd_late *lates;
	const uint8_t *text;
	uint32_t mask_count, plan_count, group_count, literal_count, late_count;
};

struct vd_watched { const uint8_t *values; size_t count; }; /* sorted uint64 */
struct vd_found { const uint8_t *rows, *literals; size_t count; uint32_t first; }; /* of one tail; first: its literal 0 */
struct vd_keys { uint64_t *keys; size_t count, room; };

/* Whether every number in the sieve lies where it should; nothing else checks that. */
bool vd_sieve_check(const struct vd_sieve *sieve, size_t values_size, size_t index_count, size_t watched_count,
		    size_t late_tails, size_t text_size);
/* answer << 32 | row for each plan that a row passes, sorted, each once. late_heaps: one for each tail of a vd_late. False: out of memory. The caller frees. */
bool vd_sieve_select(const struct vd_sieve *sieve, const uint8_t *rows, size_t count, const struct vd_watched *watched,
		     const struct vd_found *tails, size_t tail_count, const struct vd_heap *late_heaps, struct vd_keys *out);

/* What an exec's path and argument vector (strings each ended by NUL) say when it is a shell: whether it was given a
 * command or a script, options and their values left out; whether its second string is -c with something behind it;
 * whether the program is called busybox, whose arguments mean something else. */
#define VD_SHELL_GIVEN 1
#define VD_SHELL_DASH_C 2
#define VD_SHELL_BUSYBOX 4
uint8_t vd_shell_arguments(const uint8_t *path, size_t path_size, const uint8_t *argv, size_t argv_size);

#endif
