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

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
	if (!size)
		return 0;
	uint8_t *copy = copy_of(input + 1, size - 1);
	switch (input[0] % 4) {
	case 0:
		fuzz_split(copy, size - 1);
		break;
	case 1:
		fuzz_drain(copy, size - 1);
		break;
	case 2:
		fuzz_dns(copy, size - 1);
		break;
	default:
		fuzz_matcher(copy, size - 1);
	}
	free(copy);
	return 0;
}
