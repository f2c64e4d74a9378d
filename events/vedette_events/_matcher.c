/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Search for many literals at once, without regard to ASCII case.
 *
 * Of each literal one rare fragment of four bytes (three or two for shorter ones) is entered, hashed, into a bit
 * table that fits the L2 cache. The heap is scanned once per fragment length in use; only where the table has the
 * hash of the bytes at hand are the literals with that fragment compared. When all literals are long enough, each
 * enters several neighbouring fragments and only every second or fourth position is looked at. A few literals of
 * three bytes join the table of four with every byte that may follow, which saves them a scan of their own.
 *
 * Folding for the hash is `byte | 0x20`: it makes letters lower-case and NUL a space, and confuses some punctuation,
 * which the comparison tells apart.
 */
#include "_core.h"

#include <stdlib.h>

#define TABLE_BITS 19 /* 64 KiB. Measured with 1,000 literals: 18 is slower by a tenth to a fourth, 20 hardly faster. */
#define BUCKETS 8192u
#define NONE UINT32_MAX
#define MAX_JOINING 128 /* literals of three bytes: 128 table bits each, 3 % of the table at most */

struct fragment {
	uint32_t hash;
	uint32_t literal;
	uint32_t at; /* of the fragment in the literal */
	uint32_t next;
};

/* Literals whose fragments have the same number of bytes. */
struct filter {
	uint32_t table[1u << (TABLE_BITS - 5)];
	uint32_t buckets[BUCKETS];
	struct fragment *fragments;
	uint32_t count;
	uint32_t width;  /* 1 to 4 bytes */
	uint32_t stride; /* 1, 2 or 4 positions */
	const struct filter *joined; /* of width 3, found by this filter's scan; NULL for none */
};

struct vd_matcher {
	uint8_t *text; /* lower-case literals */
	uint32_t *at;
	uint32_t count;
	struct filter *filters[4]; /* by width - 1; NULL where no literal needs it */
};

static inline uint8_t lower(uint8_t c) { return c >= 'A' && c <= 'Z' ? c | 0x20 : c; }

static const uint32_t WIDTH_MASK[4] = {0xff, 0xffff, 0xffffff, 0xffffffff};

static inline uint32_t hash_of(uint32_t bytes, uint32_t mask)
{
	return (((bytes | 0x20202020u) & mask) * 0x9e3779b1u) >> (32 - TABLE_BITS);
}

static inline uint32_t load_up_to_4(const uint8_t *p, size_t left)
{
	uint32_t v = 0;
	memcpy(&v, p, left < 4 ? left : 4);
	return v;
}

/* How often a byte occurs in paths and command lines, roughly: 0 rare to 6 everywhere. */
static uint32_t byte_cost(uint8_t c)
{
	static const uint8_t letters[26] = {4, 1, 3, 2, 5, 2, 2, 2, 5, 1, 1, 3, 2, 3, 4, 2, 0, 4, 4, 5, 2, 1, 1, 1, 1, 0};
	c |= 0x20;
	if (c >= 'a' && c <= 'z')
		return letters[c - 'a'];
	if (c == ' ' || c == '/')
		return 6;
	return c == '.' || c == '-' || (c >= '0' && c <= '9') ? 3 : c == '=' || c == ('_' | 0x20) ? 1 : 0;
}

/* What nearly every event holds; a fragment from here would be compared all the time. */
static const char COMMON[] =
	" /usr/bin/ /usr/sbin/ /usr/lib/x86_64-linux-gnu/lib /usr/local/bin/ /usr/share/ /bin/sh /bin/bash /dev/null "
	"/proc/self/ /proc/sys/ /sys/fs/cgroup/ /sys/kernel/ /etc/ld.so.cache /etc/passwd /var/lib/ /var/log/ /var/run/ "
	"/run/containerd/io.containerd.runtime.v2.task/k8s.io/ /kubepods.slice/ /home/ /root/ /tmp/ /opt/ python3 "
	"/lib64/ system.slice .service .conf .json .log --config --log -c ";

/* The fragments of COMMON, hashed as those of literals are. */
static void enter_common(uint32_t *table, uint32_t width)
{
	for (size_t i = 0; i + width < sizeof(COMMON); i++) {
		uint32_t hash = hash_of(load_up_to_4((const uint8_t *)COMMON + i, width), WIDTH_MASK[width - 1]);
		table[hash >> 5] |= 1u << (hash & 31);
	}
}

/* How many literals have entered this fragment already: each is one more comparison wherever it occurs, and whoever
 * writes command lines may repeat it at will. */
static uint32_t shared(const struct filter *filter, uint32_t hash)
{
	uint32_t count = 0;
	for (uint32_t f = filter->buckets[hash % BUCKETS]; f != NONE && count < 64; f = filter->fragments[f].next)
		count += filter->fragments[f].hash == hash;
	return count;
}

static uint32_t fragment_cost(const struct filter *filter, const uint32_t *common, const uint8_t *p)
{
	uint32_t hash = hash_of(load_up_to_4(p, filter->width), WIDTH_MASK[filter->width - 1]);
	uint32_t cost = common[hash >> 5] >> (hash & 31) & 1 ? 32 : 0;
	for (uint32_t i = 0; i < filter->width; i++)
		cost += byte_cost(p[i]);
	return cost + 2 * shared(filter, hash);
}

static void enter(struct filter *filter, const uint8_t *literal, uint32_t index, uint32_t at)
{
	uint32_t hash = hash_of(load_up_to_4(literal + at, filter->width), WIDTH_MASK[filter->width - 1]);
	struct fragment *fragment = &filter->fragments[filter->count];
	*fragment = (struct fragment){.hash = hash, .literal = index, .at = at, .next = filter->buckets[hash % BUCKETS]};
	filter->buckets[hash % BUCKETS] = filter->count++;
	filter->table[hash >> 5] |= 1u << (hash & 31);
}

/* Enters the fragments of `filter`, of width 3, with whatever may follow them into the table of `wide`, of width 4. */
static void join(struct filter *wide, const struct filter *filter, const struct vd_matcher *matcher)
{
	wide->joined = filter;
	for (uint32_t f = 0; f < filter->count; f++) {
		const struct fragment *fragment = &filter->fragments[f];
		const uint8_t *literal = matcher->text + matcher->at[fragment->literal];
		for (uint32_t next = 0; next < 256; next++) {
			uint32_t hash = hash_of(load_up_to_4(literal + fragment->at, 3) | next << 24, 0xffffffff);
			wide->table[hash >> 5] |= 1u << (hash & 31);
		}
	}
}

/* Enters `stride` neighbouring fragments, those that cost least together. */
static void enter_rarest(struct filter *filter, const uint32_t *common, const uint8_t *literal, uint32_t size,
			 uint32_t index)
{
	uint32_t best = 0, best_cost = UINT32_MAX;
	/* Literals may be long and have all their rare bytes early: beyond 256 positions nothing is gained. */
	uint32_t starts = size - filter->width - filter->stride + 2;
	for (uint32_t start = 0; start < starts && start < 256; start++) {
		uint32_t cost = 0;
		for (uint32_t i = 0; i < filter->stride; i++)
			cost += fragment_cost(filter, common, literal + start + i);
		if (cost < best_cost) {
			best = start;
			best_cost = cost;
		}
	}
	for (uint32_t i = 0; i < filter->stride; i++)
		enter(filter, literal, index, best + i);
}

void vd_matcher_free(struct vd_matcher *matcher)
{
	if (!matcher)
		return;
	for (int i = 0; i < 4; i++) {
		if (matcher->filters[i])
			free(matcher->filters[i]->fragments);
		free(matcher->filters[i]);
	}
	free(matcher->text);
	free(matcher->at);
	free(matcher);
}

struct vd_matcher *vd_matcher_new(const uint8_t *text, const uint32_t *at, uint32_t count)
{
	struct vd_matcher *matcher = calloc(1, sizeof(*matcher));
	if (!matcher)
		return NULL;
	matcher->count = count;
	matcher->text = malloc(at[count] + 1u);
	matcher->at = malloc((count + (size_t)1) * sizeof(uint32_t));
	if (!matcher->text || !matcher->at)
		goto fail;
	memcpy(matcher->at, at, (count + (size_t)1) * sizeof(uint32_t));
	for (uint32_t i = 0; i < at[count]; i++)
		matcher->text[i] = lower(text[i]);
	uint32_t shortest = UINT32_MAX; /* of those with fragments of four bytes */
	size_t of_width[4] = {0};
	for (uint32_t i = 0; i < count; i++) {
		uint32_t size = at[i + 1] - at[i];
		if (size >= 4 && size < shortest)
			shortest = size;
		if (size)
			of_width[(size < 4 ? size : 4) - 1]++;
	}
	bool joining = of_width[2] && of_width[2] <= MAX_JOINING;
	for (uint32_t w = 0; w < 4; w++) {
		if (!of_width[w] && !(w == 3 && joining))
			continue;
		struct filter *filter = matcher->filters[w] = calloc(1, sizeof(*filter));
		if (!filter)
			goto fail;
		filter->width = w + 1;
		filter->stride = w < 3 || joining || shortest < 5 ? 1 : shortest < 7 ? 2 : 4;
		memset(filter->buckets, 0xff, sizeof(filter->buckets));
		filter->fragments = malloc((of_width[w] * filter->stride + 1) * sizeof(struct fragment));
		if (!filter->fragments)
			goto fail;
	}
	for (uint32_t w = 0; w < 4; w++) {
		if (!matcher->filters[w])
			continue;
		uint32_t common[1u << (TABLE_BITS - 5)] = {0};
		enter_common(common, w + 1);
		for (uint32_t i = 0; i < count; i++) {
			uint32_t size = at[i + 1] - at[i];
			if ((size < 4 ? size : 4) == w + 1)
				enter_rarest(matcher->filters[w], common, matcher->text + at[i], size, i);
		}
	}
	if (joining)
		join(matcher->filters[3], matcher->filters[2], matcher);
	return matcher;
fail:
	vd_matcher_free(matcher);
	return NULL;
}

struct search {
	const struct vd_matcher *matcher;
	const struct vd_heap *heap;
	struct vd_pairs *pairs;
	uint32_t *last_row; /* by literal: the last row entered, so that a pair is entered once */
	size_t row;         /* of the last match of this pass */
	bool failed;
};

static inline uint32_t offset_at(const struct vd_heap *heap, size_t i) { return vd_load32(heap->offsets + 4 * i); }

/* The row whose tail, or the NUL before it, holds position `at`; rows when none does. Rows only grow in a pass, apart
 * from fragments at different places in their literals, so the search begins near the last one. */
static size_t find_row(const struct vd_heap *heap, size_t from, uint64_t at)
{
	size_t low = from, step = 1;
	while (low > 0 && offset_at(heap, low) > at + 1) {
		low = low > step ? low - step : 0;
		step *= 2;
	}
	size_t high = low;
	step = 1;
	while (high < heap->rows && offset_at(heap, high + 1) <= at + 1) {
		low = high + 1;
		high = heap->rows - high > step ? high + step : heap->rows;
		step *= 2;
	}
	while (low < high) { /* first row whose successor begins after `at` */
		size_t middle = low + (high - low) / 2;
		if (offset_at(heap, middle + 1) <= at + 1)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static void add_pair(struct search *search, uint32_t row, uint32_t literal)
{
	struct vd_pairs *pairs = search->pairs;
	if (pairs->count == pairs->room) {
		size_t room = pairs->room ? pairs->room * 2 : 256;
		uint32_t *rows = realloc(pairs->rows, room * sizeof(uint32_t));
		if (rows)
			pairs->rows = rows;
		uint32_t *literals = realloc(pairs->literals, room * sizeof(uint32_t));
		if (literals)
			pairs->literals = literals;
		if (!rows || !literals) {
			search->failed = true;
			return;
		}
		pairs->room = room;
	}
	pairs->rows[pairs->count] = row;
	pairs->literals[pairs->count++] = literal;
}

static bool equal(const uint8_t *literal, const uint8_t *p, uint32_t size)
{
	for (uint32_t i = 0; i < size; i++) {
		uint8_t wanted = literal[i], c = p[i];
		if (lower(c) != wanted && !(wanted == ' ' && c == 0))
			return false;
	}
	return true;
}

/* Compares the literals that have the fragment `bytes`, found at heap position `at`. */
static __attribute__((noinline)) void compare(struct search *search, const struct filter *filter, size_t at,
					      uint32_t bytes)
{
	const struct vd_matcher *matcher = search->matcher;
	uint32_t hash = hash_of(bytes, WIDTH_MASK[filter->width - 1]);
	const struct vd_heap *heap = search->heap;
	for (uint32_t f = filter->buckets[hash % BUCKETS]; f != NONE; f = filter->fragments[f].next) {
		const struct fragment *fragment = &filter->fragments[f];
		if (fragment->hash != hash || fragment->at > at)
			continue;
		size_t start = at - fragment->at;
		uint32_t size = matcher->at[fragment->literal + 1] - matcher->at[fragment->literal];
		if (size > heap->size - start || !equal(matcher->text + matcher->at[fragment->literal], heap->data + start, size))
			continue;
		size_t row = find_row(heap, search->row, start);
		if (row >= heap->rows)
			continue;
		search->row = row;
		/* The match may take in the NUL before and behind the tail, but nothing of the neighbours. */
		if (start + 1 < offset_at(heap, row) || start + size > offset_at(heap, row + 1))
			continue;
		if (search->last_row[fragment->literal] != row) {
			search->last_row[fragment->literal] = (uint32_t)row;
			add_pair(search, (uint32_t)row, fragment->literal);
		}
	}
}

static __attribute__((noinline)) void compare_all(struct search *search, const struct filter *filter, size_t at,
						   uint32_t bytes)
{
	compare(search, filter, at, bytes);
	if (filter->joined)
		compare(search, filter->joined, at, bytes);
}

static inline bool in_table(const uint32_t *table, uint32_t hash) { return table[hash >> 5] >> (hash & 31) & 1; }

/* One pass over the heap; `mask` and `stride` are constants where this is inlined. */
static inline __attribute__((always_inline)) void scan(struct search *search, const struct filter *filter,
							uint32_t mask, size_t stride)
{
	const uint8_t *data = search->heap->data;
	const uint32_t *table = filter->table;
	size_t size = search->heap->size, at = 0;
	while (size - at >= 8 * stride + 4) {
		uint32_t hit = 0;
#pragma GCC unroll 8
		for (size_t i = 0; i < 8; i++) {
			uint32_t hash = hash_of(vd_load32(data + at + i * stride), mask);
			hit |= table[hash >> 5] >> (hash & 31);
		}
		if (__builtin_expect(hit & 1, 0)) {
			uint32_t hits = 0; /* which of the eight, found without branches that nothing could predict */
#pragma GCC unroll 8
			for (size_t i = 0; i < 8; i++)
				hits |= (uint32_t)in_table(table, hash_of(vd_load32(data + at + i * stride), mask)) << i;
			for (; hits; hits &= hits - 1) {
				size_t place = at + (size_t)__builtin_ctz(hits) * stride;
				compare_all(search, filter, place, vd_load32(data + place));
			}
		}
		at += 8 * stride;
	}
	/* The last bytes, with zeros behind them: compare() knows where the heap ends. */
	for (; at < size; at += stride) {
		uint32_t bytes = load_up_to_4(data + at, size - at);
		if (in_table(table, hash_of(bytes, mask)))
			compare_all(search, filter, at, bytes);
	}
}

static inline __attribute__((always_inline)) void scan_any(struct search *search, const struct filter *filter)
{
	if (filter->stride == 4)
		scan(search, filter, 0xffffffff, 4);
	else if (filter->stride == 2)
		scan(search, filter, 0xffffffff, 2);
	else if (filter->width == 4)
		scan(search, filter, 0xffffffff, 1);
	else if (filter->width == 3)
		scan(search, filter, 0xffffff, 1);
	else if (filter->width == 2)
		scan(search, filter, 0xffff, 1);
	else
		scan(search, filter, 0xff, 1);
}

static void scan_portable(struct search *search, const struct filter *filter) { scan_any(search, filter); }

/* shrx of BMI2 (Intel since 2013, AMD since 2015) shifts without the detour through the CL register. */
#ifdef __x86_64__
__attribute__((target("bmi2"))) static void scan_bmi2(struct search *search, const struct filter *filter)
{
	scan_any(search, filter);
}
#define SCAN (__builtin_cpu_supports("bmi2") ? scan_bmi2 : scan_portable)
#else
#define SCAN scan_portable
#endif

bool vd_matcher_search(const struct vd_matcher *matcher, const struct vd_heap *heap, struct vd_pairs *pairs)
{
	memset(pairs, 0, sizeof(*pairs));
	if (!heap->rows || !matcher->count)
		return true;
	struct search search = {.matcher = matcher, .heap = heap, .pairs = pairs};
	search.last_row = malloc(matcher->count * sizeof(uint32_t));
	if (!search.last_row)
		return false;
	memset(search.last_row, 0xff, matcher->count * sizeof(uint32_t));
	for (int w = 3; w >= 0; w--) {
		if (!matcher->filters[w] || (w == 2 && matcher->filters[3] && matcher->filters[3]->joined))
			continue;
		search.row = 0;
		SCAN(&search, matcher->filters[w]);
	}
	free(search.last_row);
	return !search.failed;
}
