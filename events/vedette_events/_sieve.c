/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sieve: which rows of one event type's fixed parts pass which of many plans. A plan is a list of masks that must all
 * hold, and perhaps groups of literals of which each must have been found in the row; whoever searches the literals
 * passes what was found. Every row is looked at once for all plans without groups; a plan with groups costs something
 * only where its first group was found.
 */
#include "_core.h"

#include <stdlib.h>

static inline uint64_t load_field(const uint8_t *p, uint32_t width, bool is_signed)
{
	switch (width) {
	case 1:
		return is_signed ? (uint64_t)(int64_t)(int8_t)*p : *p;
	case 2:
		return is_signed ? (uint64_t)(int64_t)(int16_t)vd_load16(p) : vd_load16(p);
	case 4:
		return is_signed ? (uint64_t)(int64_t)(int32_t)vd_load32(p) : vd_load32(p);
	default:
		return vd_load64(p);
	}
}

static bool in_set(const uint8_t *set, size_t count, uint64_t value)
{
	size_t low = 0, high = count;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		uint64_t there = vd_load64(set + 8 * middle);
		if (there == value)
			return true;
		if (there < value)
			low = middle + 1;
		else
			high = middle;
	}
	return false;
}

#define AF_INET 2
#define AF_INET6 10

/* Networks: value is the offset of the address family; each network takes nine words: family, bits, masks. An IPv4
 * address mapped into IPv6 is that IPv4 address. */
static bool in_networks(const struct vd_sieve *sieve, const struct vd_mask *mask, const uint8_t *row)
{
	uint16_t family = vd_load16(row + mask->value);
	const uint8_t *address = row + mask->at;
	bool mapped = family == AF_INET6 && !vd_load64(address) && vd_load32(address + 8) == 0xffff0000u;
	const uint8_t *network = sieve->values + 8 * mask->set_at;
	for (uint32_t i = 0; i < mask->set_count; i++, network += VD_NETWORK_SIZE) {
		uint32_t wanted = vd_load32(network);
		bool here = wanted == family || (wanted == AF_INET && mapped);
		for (uint32_t word = 0; word < 4 && here; word++)
			here = (vd_load32(address + 4 * word) & vd_load32(network + 20 + 4 * word)) == vd_load32(network + 4 + 4 * word);
		if (here)
			return true;
	}
	return false;
}

static inline bool holds(const struct vd_sieve *sieve, const struct vd_mask *mask, const uint8_t *row,
			 const struct vd_watched *watched)
{
	if (mask->op == VD_MASK_NET)
		return in_networks(sieve, mask, row);
	uint64_t value = load_field(row + mask->at, mask->width, mask->is_signed), wanted = mask->value;
	bool less = mask->is_signed ? (int64_t)value < (int64_t)wanted : value < wanted;
	switch (mask->op) {
	case VD_MASK_EQ:
		return value == wanted;
	case VD_MASK_NE:
		return value != wanted;
	case VD_MASK_LT:
		return less;
	case VD_MASK_GE:
		return !less;
	case VD_MASK_LE:
		return less || value == wanted;
	case VD_MASK_GT:
		return !less && value != wanted;
	case VD_MASK_ANY_BITS:
		return value & wanted;
	case VD_MASK_ALL_BITS:
		return (value & wanted) == wanted;
	case VD_MASK_NO_BITS:
		return !(value & wanted);
	case VD_MASK_IN:
		return in_set(sieve->values + 8 * mask->set_at, mask->set_count, value);
	case VD_MASK_NOT_IN:
		return !in_set(sieve->values + 8 * mask->set_at, mask->set_count, value);
	case VD_MASK_WATCHED:
		return in_set(watched[wanted].values, watched[wanted].count, value);
	case VD_MASK_NEVER:
		return false;
	default:
		return true;
	}
}

static inline bool all_hold(const struct vd_sieve *sieve, const struct vd_plan *plan, const uint8_t *row,
			    const struct vd_watched *watched)
{
	for (uint32_t i = 0; i < plan->masks; i++)
		if (!holds(sieve, &sieve->masks[sieve->indexes[plan->masks_at + i]], row, watched))
			return false;
	return true;
}

static bool push(struct vd_keys *keys, uint32_t high, uint32_t low)
{
	if (keys->count == keys->room) {
		size_t room = keys->room ? keys->room * 2 : 64;
		uint64_t *grown = realloc(keys->keys, room * sizeof(*grown));
		if (!grown)
			return false;
		keys->keys = grown;
		keys->room = room;
	}
	keys->keys[keys->count++] = (uint64_t)high << 32 | low;
	return true;
}

static int compare_keys(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return x < y ? -1 : x > y;
}

static void sort_unique(struct vd_keys *keys)
{
	if (keys->count < 2)
		return;
	bool ordered = true;
	for (size_t i = 1; i < keys->count && ordered; i++)
		ordered = keys->keys[i - 1] < keys->keys[i];
	if (ordered)
		return;
	qsort(keys->keys, keys->count, sizeof(*keys->keys), compare_keys);
	size_t kept = 1;
	for (size_t i = 1; i < keys->count; i++)
		if (keys->keys[i] != keys->keys[kept - 1])
			keys->keys[kept++] = keys->keys[i];
	keys->count = kept;
}

/* A plan can pass nothing while one of its watched fields has no values. */
static bool asleep(const struct vd_sieve *sieve, const struct vd_plan *plan, const struct vd_watched *watched)
{
	for (uint32_t i = 0; i < plan->masks; i++) {
		const struct vd_mask *mask = &sieve->masks[sieve->indexes[plan->masks_at + i]];
		if (mask->op == VD_MASK_NEVER || (mask->op == VD_MASK_WATCHED && !watched[mask->value].count))
			return true;
	}
	return false;
}

static bool select_plain(const struct vd_sieve *sieve, const uint8_t *rows, size_t count,
			 const struct vd_watched *watched, struct vd_keys *out)
{
	const struct vd_plan **awake = malloc((sieve->plan_count + 1) * sizeof(*awake));
	size_t plans = 0;
	bool good = awake;
	for (uint32_t p = 0; good && p < sieve->plan_count; p++)
		if (sieve->plans[p].plain && !asleep(sieve, &sieve->plans[p], watched))
			awake[plans++] = &sieve->plans[p];
	if (plans)
		for (size_t row = 0; row < count && good; row++, rows += sieve->row_size)
			for (size_t p = 0; p < plans; p++)
				if (all_hold(sieve, awake[p], rows, watched))
					good = good && push(out, (uint32_t)(awake[p] - sieve->plans), (uint32_t)row);
	free(awake);
	return good;
}

/* Whether a literal occurs in a tail, as vd_matcher_search would tell: the NUL before and behind the tail included. */
static bool occurs(const uint8_t *literal, uint32_t size, const struct vd_heap *heap, uint32_t row)
{
	const uint8_t *p;
	size_t n;
	if (row >= heap->rows || !vd_heap_tail(heap, row, &p, &n) || p == heap->data)
		return false;
	for (const uint8_t *end = p + n + 1 - size, *at = p - 1; at <= end; at++) {
		uint32_t i = 0;
		for (; i < size; i++) {
			uint8_t c = at[i];
			if ((c >= 'A' && c <= 'Z' ? c | 0x20 : c) != literal[i] && !(literal[i] == ' ' && !c))
				break;
		}
		if (i == size)
			return true;
	}
	return false;
}

static bool occurs_late(const struct vd_sieve *sieve, const struct vd_group *group, const struct vd_heap *heaps, uint32_t row)
{
	for (uint32_t i = 0; i < group->late; i++) {
		const struct vd_late *late = &sieve->lates[group->late_at + i];
		if (occurs(sieve->text + late->text_at, late->size, &heaps[late->tail], row))
			return true;
	}
	return false;
}

static bool has_groups(const struct vd_sieve *sieve, const struct vd_plan *plan, const struct vd_keys *found,
		       const struct vd_heap *late_heaps, uint32_t row)
{
	for (uint32_t i = 1; i < plan->groups; i++) {
		uint32_t number = sieve->indexes[plan->groups_at + i];
		uint64_t key = (uint64_t)number << 32 | row;
		const struct vd_group *group = &sieve->groups[number];
		if (group->late) {
			if (!occurs_late(sieve, group, late_heaps, row))
				return false;
		} else if (!found->count || !bsearch(&key, found->keys, found->count, sizeof(key), compare_keys))
			return false;
	}
	return true;
}

/* What was found of group `group` in `row`: enter the group where plans join it, and the plans that begin with it. */
static bool enter_group(const struct vd_sieve *sieve, uint32_t group, uint32_t row, const uint8_t *rows,
			const struct vd_watched *watched, struct vd_keys *found, struct vd_keys *waiting,
			struct vd_keys *out)
{
	const struct vd_group *g = &sieve->groups[group];
	if (g->joined && !push(found, group, row))
		return false;
	for (uint32_t i = 0; i < g->plans; i++) {
		uint32_t number = sieve->indexes[g->plans_at + i];
		const struct vd_plan *plan = &sieve->plans[number];
		if (!all_hold(sieve, plan, rows + (size_t)row * sieve->row_size, watched))
			continue;
		if (!push(plan->groups > 1 ? waiting : out, number, row))
			return false;
	}
	return true;
}

bool vd_sieve_select(const struct vd_sieve *sieve, const uint8_t *rows, size_t count, const struct vd_watched *watched,
		     const struct vd_found *tails, size_t tail_count, const struct vd_heap *late_heaps, struct vd_keys *out)
{
	struct vd_keys found = {0}, waiting = {0};
	memset(out, 0, sizeof(*out));
	bool good = select_plain(sieve, rows, count, watched, out);
	for (size_t t = 0; t < tail_count && good; t++) {
		for (size_t i = 0; i < tails[t].count && good; i++) {
			uint32_t row = vd_load32(tails[t].rows + 4 * i);
			uint32_t literal = vd_load32(tails[t].literals + 4 * i) + tails[t].first;
			if (row >= count || literal >= sieve->literal_count)
				continue;
			const uint32_t *of = sieve->literals + literal;
			for (uint32_t g = of[0]; g < of[1] && good; g++)
				good = enter_group(sieve, sieve->indexes[g], row, rows, watched, &found, &waiting, out);
		}
	}
	sort_unique(&found);
	sort_unique(&waiting);
	for (size_t i = 0; i < waiting.count && good; i++) {
		uint32_t number = (uint32_t)(waiting.keys[i] >> 32), row = (uint32_t)waiting.keys[i];
		if (has_groups(sieve, &sieve->plans[number], &found, late_heaps, row))
			good = push(out, number, row);
	}
	/* Several plans belong to one unit: in the answer a row is there once for each unit. */
	for (size_t i = 0; i < out->count; i++)
		out->keys[i] = (uint64_t)sieve->plans[out->keys[i] >> 32].answer << 32 | (uint32_t)out->keys[i];
	sort_unique(out);
	free(found.keys);
	free(waiting.keys);
	return good;
}

bool vd_sieve_check(const struct vd_sieve *sieve, size_t values_size, size_t index_count, size_t watched_count,
		    size_t late_tails, size_t text_size)
{
	for (uint32_t m = 0; m < sieve->mask_count; m++) {
		const struct vd_mask *mask = &sieve->masks[m];
		uint32_t width = mask->op == VD_MASK_NET ? 16 : mask->width;
		if (mask->op >= VD_MASK_OPS || (width != 1 && width != 2 && width != 4 && width != 8 && width != 16) ||
		    (width == 16 && mask->op != VD_MASK_NET) || (size_t)mask->at + width > sieve->row_size)
			return false;
		size_t set = 8 * (size_t)mask->set_at;
		size_t bytes = (mask->op == VD_MASK_NET ? VD_NETWORK_SIZE : 8) * (size_t)mask->set_count;
		if (set > values_size || bytes > values_size - set)
			return false;
		if (mask->op == VD_MASK_NET && mask->value + 2 > sieve->row_size)
			return false;
		if (mask->op == VD_MASK_WATCHED && mask->value >= watched_count)
			return false;
	}
	for (uint32_t p = 0; p < sieve->plan_count; p++) {
		const struct vd_plan *plan = &sieve->plans[p];
		if ((size_t)plan->masks_at + plan->masks > index_count || (size_t)plan->groups_at + plan->groups > index_count)
			return false;
		for (uint32_t i = 0; i < plan->masks; i++)
			if (sieve->indexes[plan->masks_at + i] >= sieve->mask_count)
				return false;
		for (uint32_t i = 0; i < plan->groups; i++)
			if (sieve->indexes[plan->groups_at + i] >= sieve->group_count)
				return false;
	}
	for (uint32_t l = 0; l < sieve->late_count; l++) {
		const struct vd_late *late = &sieve->lates[l];
		if (late->tail >= late_tails || !late->size || (size_t)late->text_at + late->size > text_size)
			return false;
	}
	for (uint32_t g = 0; g < sieve->group_count; g++) {
		const struct vd_group *group = &sieve->groups[g];
		if ((size_t)group->plans_at + group->plans > index_count ||
		    (size_t)group->late_at + group->late > sieve->late_count)
			return false;
		for (uint32_t i = 0; i < group->plans; i++)
			if (sieve->indexes[group->plans_at + i] >= sieve->plan_count)
				return false;
	}
	for (uint32_t l = 0; l < sieve->literal_count; l++) {
		if (sieve->literals[l] > sieve->literals[l + 1] || sieve->literals[l + 1] > index_count)
			return false;
		for (uint32_t i = sieve->literals[l]; i < sieve->literals[l + 1]; i++)
			if (sieve->indexes[i] >= sieve->group_count)
				return false;
	}
	return true;
}

/* ---- shells ---- */

static bool next_argument(const uint8_t **p, const uint8_t *end, const uint8_t **argument, size_t *size)
{
	if (*p >= end)
		return false;
	const uint8_t *nul = memchr(*p, 0, (size_t)(end - *p));
	*argument = *p;
	*size = (size_t)((nul ? nul : end) - *p);
	*p = nul ? nul + 1 : end;
	return true;
}

static bool is(const uint8_t *p, size_t n, const char *text) { return n == strlen(text) && !memcmp(p, text, n); }

uint8_t vd_shell_arguments(const uint8_t *path, size_t path_size, const uint8_t *argv, size_t argv_size)
{
	const uint8_t *p = argv, *end = argv + argv_size, *argument;
	bool busybox = path_size >= 7 && !memcmp(path + path_size - 7, "busybox", 7) &&
		       (path_size == 7 || path[path_size - 8] == '/');
	size_t n, count = 0;
	bool skip = false, dash_c = false, given = false, reads_stdin = false;
	for (; next_argument(&p, end, &argument, &n); count++) {
		if (count == 0)
			continue;
		if (count == 1)
			dash_c = is(argument, n, "-c");
		if (reads_stdin)
			continue;
		if (skip)
			skip = false;
		else if (is(argument, n, "-o") || is(argument, n, "+o") || is(argument, n, "-O") || is(argument, n, "+O") ||
			 is(argument, n, "--rcfile") || is(argument, n, "--init-file"))
			skip = true;
		else if (is(argument, n, "-s"))
			reads_stdin = true;
		else if (n > 1 && (argument[0] == '-' || argument[0] == '+'))
			given = given || (!(argument[0] == '-' && argument[1] == '-') && memchr(argument, 'c', n));
		else
			given = given || !is(argument, n, "-");
	}
	return (uint8_t)((given && !reads_stdin ? VD_SHELL_GIVEN : 0) | (dash_c && count >= 3 ? VD_SHELL_DASH_C : 0) |
			 (busybox ? VD_SHELL_BUSYBOX : 0));
}
