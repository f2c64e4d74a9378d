/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libFuzzer harness of the event path's C core. The first byte of an input chooses what is run; every buffer is
 * allocated at its exact size, so that AddressSanitizer sees a read of one byte too many.
 *
 * The layouts come from a file (VEDETTE_LAYOUTS) that the test writes from the schema.
 */
#include "_core.h"

#include <stdio.h>
#include <stdlib.h>

static struct vd_layout layouts[VD_MAX_TYPES];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	const char *path = getenv("VEDETTE_LAYOUTS");
	FILE *file = path ? fopen(path, "rb") : NULL;
	if (!file || fread(layouts, sizeof(layouts), 1, file) != 1) {
		fprintf(stderr, "VEDETTE_LAYOUTS must name a file of %zu bytes\n", sizeof(layouts));
		exit(2);
	}
	fclose(file);
	return 0;
}

static void check(bool good)
{
	if (!good)
		abort();
}

static void *copy_of(const uint8_t *data, size_t size)
{
	uint8_t *copy = malloc(size ? size : 1);
	check(copy);
	memcpy(copy, data, size);
	return copy;
}

static void fuzz_split(const uint8_t *records, size_t size)
{
	struct vd_counts counts;
	struct vd_error error;
	uint64_t scanned, first, last;
	bool sizes_fit = vd_scan(records, size, &scanned, &first, &last, &error);
	if (!vd_split_count(records, size, layouts, &counts, &error)) {
		check(error.offset < size && error.problem != VD_OK);
		return;
	}
	check(sizes_fit && scanned == counts.records && first <= last);
	struct vd_columns_out *outs = calloc(VD_MAX_TYPES, sizeof(*outs));
	check(outs);
	for (int type = 0; type < VD_MAX_TYPES; type++) {
		uint32_t rows = counts.rows[type];
		if (!rows)
			continue;
		outs[type].fixed = malloc((size_t)rows * layouts[type].fixed);
		outs[type].order = malloc((size_t)rows * 4);
		for (int t = 0; t < layouts[type].tails; t++) {
			struct vd_heap_out *heap = &outs[type].tails[t];
			heap->size = rows + counts.tail_bytes[type][t] + 1;
			heap->data = malloc(heap->size);
			heap->offsets = malloc(((size_t)rows + 1) * 4);
			heap->data[0] = 0;
			heap->offsets[0] = heap->at = 1;
		}
	}
	vd_split_copy(records, size, layouts, outs);
	for (int type = 0; type < VD_MAX_TYPES; type++) {
		check(outs[type].row == counts.rows[type]);
		for (int t = 0; counts.rows[type] && t < layouts[type].tails; t++) {
			struct vd_heap_out *heap = &outs[type].tails[t];
			check(heap->at == heap->size && heap->offsets[counts.rows[type]] == heap->size);
			check(heap->data[heap->size - 1] == 0);
			free(heap->data);
			free(heap->offsets);
		}
		free(outs[type].fixed);
		free(outs[type].order);
	}
	free(outs);
}

/* The input is a consumer position, how far the producer is ahead, and the first of the data. */
static void fuzz_drain(const uint8_t *input, size_t size)
{
	enum { RING = 4096 };
	static struct vd_executables executables;
	_Alignas(8) uint64_t producer;
	if (size < 4)
		return;
	uint64_t from = vd_load16(input);
	producer = from + vd_load16(input + 2);
	input += 4;
	size -= 4;
	uint8_t *data = calloc(1, 2 * RING);
	check(data);
	for (size_t i = 0; i < size && i < RING; i++)
		data[(from + i) % RING] = input[i];
	memcpy(data + RING, data, RING);
	struct vd_ring ring = {.producer = (const uint8_t *)&producer, .data = data, .size = RING};
	size_t capacity = producer - from < RING ? producer - from : RING;
	uint8_t *out = malloc(capacity ? capacity : 1);
	struct vd_drained drained;
	enum vd_drain_status status = vd_ring_drain(&ring, from, out, capacity, &executables, 0, &drained);
	check(drained.bytes <= capacity && drained.position >= from);
	check(status != VD_DRAIN_OK || drained.position <= producer);
	check(executables.count <= VD_NEW_EXECUTABLES && executables.paths_size <= VD_NEW_PATHS);
	struct vd_error error;
	uint64_t count, first, last;
	check(vd_scan(out, drained.bytes, &count, &first, &last, &error) && count == drained.records);
	if (executables.count > VD_NEW_EXECUTABLES / 2)
		executables.count = executables.paths_size = 0;
	free(out);
	free(data);
}

static void fuzz_dns(const uint8_t *input, size_t size)
{
	uint64_t table[4] = {1, vd_fnv1a((const uint8_t *)"example", 7), vd_fnv1a((const uint8_t *)"bad.example", 11), ~0ull};
	if (table[1] > table[2]) {
		uint64_t swapped = table[1];
		table[1] = table[2];
		table[2] = swapped;
	}
	uint8_t name[VD_DNS_NAME];
	size_t length = 0;
	if (vd_dns_question(input, size, name, &length))
		check(length <= 253);
	for (size_t at = 0; at < size; at++) {
		size_t next = at;
		if (vd_dns_name(input, size, &next, name, &length))
			check(next > at && next <= size && length <= 253);
	}
	vd_dns_match(input, size, (const uint8_t *)table, 4);
}

/* The input is literals, each with its length before it, a zero, a number of offsets, the offsets, and the heap. */
static void fuzz_matcher(const uint8_t *input, size_t size)
{
	uint32_t at[65] = {0}, count = 0;
	uint8_t text[64 * 32];
	while (count < 64 && size && *input && *input < 32 && *input < size) {
		memcpy(text + at[count], input + 1, *input);
		at[count + 1] = at[count] + *input;
		count++;
		size -= *input + 1u;
		input += *input + 1;
	}
	if (size < 2)
		return;
	size_t rows = input[1];
	input += 2;
	size -= 2;
	if (size < 4 * (rows + 1))
		return;
	uint8_t *offsets = copy_of(input, 4 * (rows + 1));
	size_t heap_size = size - 4 * (rows + 1);
	uint8_t *data = copy_of(input + 4 * (rows + 1), heap_size);
	struct vd_heap heap = {.data = data, .size = heap_size, .offsets = offsets, .rows = rows};
	struct vd_matcher *matcher = vd_matcher_new(text, at, count);
	struct vd_pairs pairs;
	check(matcher && vd_matcher_search(matcher, &heap, &pairs));
	for (size_t i = 0; i < pairs.count; i++)
		check(pairs.rows[i] < rows && pairs.literals[i] < count);
	for (size_t row = 0; row < rows; row++) {
		const uint8_t *p;
		size_t n;
		if (vd_heap_tail(&heap, row, &p, &n))
			vd_fnv1a(p, n);
	}
	free(pairs.rows);
	free(pairs.literals);
	vd_matcher_free(matcher);
	free(data);
	free(offsets);
}

/* Small numbers out of an input, zeros behind its end. */
struct numbers { const uint8_t *at, *end; };

static uint32_t next(struct numbers *numbers) { return numbers->at < numbers->end ? *numbers->at++ : 0; }

/* Mostly 0 to most, now and then one more: the parts of a sieve fit each other often enough to be run. */
static uint32_t up_to(struct numbers *numbers, uint32_t most)
{
	uint32_t number = next(numbers);
	return number == 255 ? most + 1 : number % (most + 1);
}

static uint64_t wide(struct numbers *numbers)
{
	static const uint64_t values[] = {0, 1, 2, 10, 127, 128, 255, 32768, 65535, 1ull << 31, 1ull << 32, ~0ull, 1ull << 63};
	uint32_t number = next(numbers);
	return number < 200 ? values[number % (sizeof(values) / sizeof(*values))] : number;
}

static void *array(size_t count, size_t size)
{
	void *made = calloc(count ? count : 1, size);
	check(made);
	return made;
}

/* A heap as _native.c lets it through: offsets that need not lie in it. */
static struct vd_heap any_heap(struct numbers *numbers, size_t rows)
{
	uint32_t *offsets = malloc(4 * (rows + 1));
	size_t size = next(numbers) % 64;
	uint8_t *data = malloc(size ? size : 1);
	check(offsets && data);
	for (size_t i = 0; i <= rows; i++)
		offsets[i] = (i ? offsets[i - 1] : 0) + next(numbers) % 8;
	for (size_t i = 0; i < size; i++)
		data[i] = (uint8_t)next(numbers);
	return (struct vd_heap){.data = data, .size = size, .offsets = (const uint8_t *)offsets, .rows = rows};
}

static void fuzz_sieve(const uint8_t *input, size_t size)
{
	struct numbers in = {input, input + size};
	uint32_t row_size = 1 + next(&in) % 48, rows = next(&in) % 8, watched_count = next(&in) % 3, late_tails = next(&in) % 3;
	uint32_t masks = next(&in) % 6, plans = next(&in) % 6, groups = next(&in) % 6, literals = next(&in) % 6;
	uint32_t indexes = next(&in) % 16, values = next(&in) % 12, lates = next(&in) % 4, text = next(&in) % 8;
	struct vd_mask *mask = array(masks, sizeof(*mask));
	struct vd_plan *plan = array(plans, sizeof(*plan));
	struct vd_group *group = array(groups, sizeof(*group));
	struct vd_late *late = array(lates, sizeof(*late));
	uint32_t *index = array(indexes, 4), *literal = array(literals + 1u, 4);
	uint64_t *value = array(values, 8);
	uint8_t *letters = array(text, 1), *row = array((size_t)rows * row_size, 1);
	uint32_t least = masks < plans ? masks : plans;
	least = groups < least ? groups : least;
	for (uint32_t i = 0; i < indexes; i++)
		index[i] = up_to(&in, least ? least - 1 : 0);
	for (uint32_t i = 0; i < masks; i++) {
		static const uint8_t widths[] = {1, 2, 4, 8, 16, 3};
		mask[i].op = up_to(&in, VD_MASK_OPS - 1);
		mask[i].width = widths[next(&in) % 6];
		uint32_t width = mask[i].op == VD_MASK_NET ? 16 : mask[i].width;
		mask[i].at = (uint16_t)up_to(&in, row_size > width ? row_size - width : 0);
		mask[i].is_signed = next(&in) & 1;
		mask[i].set_at = up_to(&in, values);
		uint32_t left = mask[i].set_at < values ? values - mask[i].set_at : 0;
		mask[i].set_count = up_to(&in, mask[i].op == VD_MASK_NET ? left / (VD_NETWORK_SIZE / 8) : left);
		mask[i].value = mask[i].op == VD_MASK_NET ? up_to(&in, row_size > 2 ? row_size - 2 : 0)
			: mask[i].op == VD_MASK_WATCHED ? up_to(&in, watched_count ? watched_count - 1 : 0) : wide(&in);
	}
	for (uint32_t i = 0; i < plans; i++) {
		plan[i].masks_at = up_to(&in, indexes);
		plan[i].masks = up_to(&in, plan[i].masks_at < indexes ? (indexes - plan[i].masks_at) % 4 : 0);
		plan[i].groups_at = up_to(&in, indexes);
		plan[i].groups = up_to(&in, plan[i].groups_at < indexes ? (indexes - plan[i].groups_at) % 4 : 0);
		plan[i].answer = next(&in);
		plan[i].plain = !plan[i].groups;
	}
	for (uint32_t i = 0; i < groups; i++) {
		group[i].plans_at = up_to(&in, indexes);
		group[i].plans = up_to(&in, group[i].plans_at < indexes ? (indexes - group[i].plans_at) % 4 : 0);
		group[i].joined = next(&in) & 1;
		group[i].late_at = up_to(&in, lates);
		group[i].late = up_to(&in, group[i].late_at < lates ? lates - group[i].late_at : 0);
	}
	for (uint32_t i = 1; i <= literals; i++)
		literal[i] = literal[i - 1] + up_to(&in, literal[i - 1] < indexes ? (indexes - literal[i - 1]) % 3 : 0);
	for (uint32_t i = 0; i < lates; i++) {
		late[i].tail = up_to(&in, late_tails ? late_tails - 1 : 0);
		late[i].text_at = up_to(&in, text);
		late[i].size = up_to(&in, late[i].text_at < text ? text - late[i].text_at : 0);
	}
	for (uint32_t i = 0; i < values; i++)
		value[i] = wide(&in);
	for (uint32_t i = 0; i < text; i++)
		letters[i] = (uint8_t)next(&in);
	for (uint32_t i = 0; i < rows * row_size; i++)
		row[i] = (uint8_t)next(&in);
	struct vd_sieve sieve = {
		.row_size = row_size, .masks = mask, .plans = plan, .groups = group, .literals = literal, .indexes = index,
		.values = (const uint8_t *)value, .lates = late, .text = letters, .mask_count = masks, .plan_count = plans,
		.group_count = groups, .literal_count = literals, .late_count = lates,
	};
	if (vd_sieve_check(&sieve, 8 * (size_t)values, indexes, watched_count, late_tails, text)) {
		struct vd_watched watched[2] = {0};
		struct vd_heap heaps[2];
		struct vd_found found[2];
		uint64_t seen[2][2];
		for (uint32_t i = 0; i < watched_count; i++) {
			seen[i][0] = wide(&in);
			seen[i][1] = ~0ull;
			watched[i] = (struct vd_watched){(const uint8_t *)seen[i], next(&in) % 3};
		}
		for (uint32_t i = 0; i < late_tails; i++)
			heaps[i] = any_heap(&in, next(&in) % 8);
		for (uint32_t i = 0; i < 2; i++) { /* rows and literals that need not exist */
			size_t count = next(&in) % 16;
			uint32_t *found_rows = array(count, 4), *found_literals = array(count, 4);
			for (size_t n = 0; n < count; n++) {
				found_rows[n] = up_to(&in, rows);
				found_literals[n] = up_to(&in, literals);
			}
			found[i] = (struct vd_found){(const uint8_t *)found_rows, (const uint8_t *)found_literals, count, up_to(&in, literals)};
		}
		struct vd_keys keys;
		check(vd_sieve_select(&sieve, row, rows, watched, found, 2, heaps, &keys));
		for (size_t i = 0; i < keys.count; i++) {
			check((uint32_t)keys.keys[i] < rows && (!i || keys.keys[i] > keys.keys[i - 1]));
			bool answers = false;
			for (uint32_t p = 0; p < plans; p++)
				answers = answers || plan[p].answer == keys.keys[i] >> 32;
			check(answers);
		}
		free(keys.keys);
		for (uint32_t i = 0; i < 2; i++) {
			free((void *)found[i].rows);
			free((void *)found[i].literals);
		}
		for (uint32_t i = 0; i < late_tails; i++) {
			free((void *)heaps[i].data);
			free((void *)heaps[i].offsets);
		}
	}
	void *parts[] = {mask, plan, group, late, index, literal, value, letters, row};
	for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++)
		free(parts[i]);
}

/* The length of the path, the path, and the argument vector. */
static void fuzz_shell(const uint8_t *input, size_t size)
{
	if (!size)
		return;
	size_t length = input[0] < size ? input[0] : size - 1;
	uint8_t *path = copy_of(input + 1, length), *argv = copy_of(input + 1 + length, size - 1 - length);
	uint8_t flags = vd_shell_arguments(path, length, argv, size - 1 - length);
	check(flags <= (VD_SHELL_GIVEN | VD_SHELL_DASH_C | VD_SHELL_BUSYBOX));
	free(path);
	free(argv);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
	if (!size)
		return 0;
	uint8_t *copy = copy_of(input + 1, size - 1);
	switch (input[0] % 6) {
	case 0:
		fuzz_split(copy, size - 1);
		break;
	case 1:
		fuzz_drain(copy, size - 1);
		break;
	case 2:
		fuzz_dns(copy, size - 1);
		break;
	case 3:
		fuzz_matcher(copy, size - 1);
		break;
	case 4:
		fuzz_sieve(copy, size - 1);
		break;
	default:
		fuzz_shell(copy, size - 1);
	}
	free(copy);
	return 0;
}
