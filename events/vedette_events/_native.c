/* SPDX-License-Identifier: Apache-2.0 */
/* Python's door to the C core (_core.h). What each function takes and gives is written in _native.pyi. */
#define _GNU_SOURCE /* memrchr */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <limits.h>
#include <malloc.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "_core.h"

static PyObject *SplitError, *RingError;

static void *raise_split_error(const struct vd_error *e)
{
	PyObject *args = Py_BuildValue("(iKKIIKK)", (int)e->problem, (unsigned long long)e->index,
				       (unsigned long long)e->offset, e->type, e->tail, (unsigned long long)e->value,
				       (unsigned long long)e->bound);
	if (args) {
		PyErr_SetObject(SplitError, args);
		Py_DECREF(args);
	}
	return NULL;
}

/* Only bytes objects are taken where the lock is released: nobody can change them meanwhile. */
static bool check_size(Py_ssize_t size)
{
	if ((size_t)size <= VD_MAX_BATCH)
		return true;
	PyErr_Format(PyExc_ValueError, "%zd bytes are more than %zu", size, VD_MAX_BATCH);
	return false;
}

/* ---- split ---- */

static const struct vd_layout *check_layouts(PyObject *bytes)
{
	const struct vd_layout *layouts = (const struct vd_layout *)PyBytes_AS_STRING(bytes);
	if ((size_t)PyBytes_GET_SIZE(bytes) != VD_MAX_TYPES * sizeof(*layouts)) {
		PyErr_SetString(PyExc_ValueError, "layouts: wrong size");
		return NULL;
	}
	for (int i = 0; i < VD_MAX_TYPES; i++) {
		const struct vd_layout *l = &layouts[i];
		if (l->fixed && (l->fixed < 72 || l->fixed % 8 || l->tails > VD_MAX_TAILS ||
				 l->lengths_at + 2 * l->tails > l->fixed)) {
			PyErr_Format(PyExc_ValueError, "layouts: type %d is impossible", i);
			return NULL;
		}
	}
	return layouts;
}

static PyObject *new_bytes(size_t size, void *data)
{
	PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
	if (bytes)
		*(void **)data = PyBytes_AS_STRING(bytes);
	return bytes;
}

/* (heap, offsets), both to be filled. */
static PyObject *new_heap(uint32_t rows, uint32_t tail_bytes, struct vd_heap_out *out)
{
	out->size = rows + tail_bytes + 1;
	PyObject *heap = new_bytes(out->size, &out->data);
	PyObject *offsets = new_bytes(((size_t)rows + 1) * 4, &out->offsets);
	if (!heap || !offsets) {
		Py_XDECREF(heap);
		Py_XDECREF(offsets);
		return NULL;
	}
	out->data[0] = 0;
	out->offsets[0] = out->at = 1;
	return Py_BuildValue("(NN)", heap, offsets);
}

static PyObject *new_columns(const struct vd_layout *layout, uint32_t rows, const uint32_t *tail_bytes,
			     struct vd_columns_out *out)
{
	memset(out, 0, sizeof(*out));
	PyObject *fixed = new_bytes((size_t)rows * layout->fixed, &out->fixed);
	PyObject *order = new_bytes((size_t)rows * 4, &out->order);
	PyObject *tails = PyTuple_New(layout->tails);
	if (!fixed || !order || !tails)
		goto fail;
	for (uint32_t t = 0; t < layout->tails; t++) {
		PyObject *heap = new_heap(rows, tail_bytes[t], &out->tails[t]);
		if (!heap)
			goto fail;
		PyTuple_SET_ITEM(tails, t, heap);
	}
	return Py_BuildValue("(NNN)", fixed, order, tails);
fail:
	Py_XDECREF(fixed);
	Py_XDECREF(order);
	Py_XDECREF(tails);
	return NULL;
}

static PyObject *native_split(PyObject *module, PyObject *args)
{
	(void)module;
	PyObject *records, *table;
	if (!PyArg_ParseTuple(args, "SS:split", &records, &table))
		return NULL;
	const struct vd_layout *layouts = check_layouts(table);
	size_t size = (size_t)PyBytes_GET_SIZE(records);
	if (!layouts || !check_size((Py_ssize_t)size))
		return NULL;
	const uint8_t *data = (const uint8_t *)PyBytes_AS_STRING(records);
	struct vd_counts counts;
	struct vd_error error;
	bool good;
	Py_BEGIN_ALLOW_THREADS
	good = vd_split_count(data, size, layouts, &counts, &error);
	Py_END_ALLOW_THREADS
	if (!good)
		return raise_split_error(&error);
	struct vd_columns_out *outs = PyMem_Malloc(VD_MAX_TYPES * sizeof(*outs));
	PyObject *result = PyDict_New();
	if (!outs || !result)
		goto fail;
	for (int type = 0; type < VD_MAX_TYPES; type++) {
		if (!counts.rows[type])
			continue;
		PyObject *columns = new_columns(&layouts[type], counts.rows[type], counts.tail_bytes[type], &outs[type]);
		PyObject *code = columns ? PyLong_FromLong(type) : NULL;
		int failed = !code || PyDict_SetItem(result, code, columns) < 0;
		Py_XDECREF(code);
		Py_XDECREF(columns);
		if (failed)
			goto fail;
	}
	Py_BEGIN_ALLOW_THREADS
	vd_split_copy(data, size, layouts, outs);
	Py_END_ALLOW_THREADS
	PyMem_Free(outs);
	return result;
fail:
	PyMem_Free(outs);
	Py_XDECREF(result);
	return PyErr_Occurred() ? NULL : PyErr_NoMemory();
}

static PyObject *native_scan(PyObject *module, PyObject *records)
{
	(void)module;
	if (!PyBytes_Check(records))
		return PyErr_Format(PyExc_TypeError, "records must be bytes, not %s", Py_TYPE(records)->tp_name);
	uint64_t count, first, last;
	struct vd_error error;
	bool good;
	const uint8_t *data = (const uint8_t *)PyBytes_AS_STRING(records);
	size_t size = (size_t)PyBytes_GET_SIZE(records);
	Py_BEGIN_ALLOW_THREADS
	good = vd_scan(data, size, &count, &first, &last, &error);
	Py_END_ALLOW_THREADS
	if (!good)
		return raise_split_error(&error);
	return Py_BuildValue("(KKK)", (unsigned long long)count, (unsigned long long)first, (unsigned long long)last);
}

/* ---- heaps ---- */

/* Arguments (heap: bytes, offsets: buffer of uint32, ...); the buffer is to be released. */
static bool open_heap(PyObject *bytes, Py_buffer *offsets, struct vd_heap *heap)
{
	if (offsets->len < 4 || offsets->len % 4) {
		PyErr_Format(PyExc_ValueError, "offsets: %zd bytes are not one or more uint32", offsets->len);
		return false;
	}
	heap->data = (const uint8_t *)PyBytes_AS_STRING(bytes);
	heap->size = (size_t)PyBytes_GET_SIZE(bytes);
	heap->offsets = offsets->buf;
	heap->rows = (size_t)offsets->len / 4 - 1;
	return check_size((Py_ssize_t)heap->size) && check_size(offsets->len);
}

static PyObject *bad_offsets(void)
{
	PyErr_SetString(PyExc_ValueError, "offsets do not lie in the heap");
	return NULL;
}

static PyObject *hashes(PyObject *args, bool basename)
{
	PyObject *bytes, *result = NULL;
	Py_buffer offsets;
	if (!PyArg_ParseTuple(args, "Sy*", &bytes, &offsets))
		return NULL;
	struct vd_heap heap;
	uint64_t *out;
	if (open_heap(bytes, &offsets, &heap) && (result = new_bytes(heap.rows * 8, &out))) {
		bool good = true;
		Py_BEGIN_ALLOW_THREADS
		for (size_t row = 0; row < heap.rows && good; row++) {
			const uint8_t *p;
			size_t n;
			good = vd_heap_tail(&heap, row, &p, &n);
			if (!good)
				break;
			if (basename) {
				const uint8_t *slash = n ? memrchr(p, '/', n) : NULL;
				if (slash) {
					n -= (size_t)(slash + 1 - p);
					p = slash + 1;
				}
			}
			out[row] = vd_fnv1a(p, n);
		}
		Py_END_ALLOW_THREADS
		if (!good) {
			Py_CLEAR(result);
			bad_offsets();
		}
	}
	PyBuffer_Release(&offsets);
	return result;
}

static PyObject *native_basename_hashes(PyObject *module, PyObject *args)
{
	(void)module;
	return hashes(args, true);
}

static PyObject *native_tail_hashes(PyObject *module, PyObject *args)
{
	(void)module;
	return hashes(args, false);
}

static PyObject *native_fnv1a(PyObject *module, PyObject *arg)
{
	(void)module;
	Py_buffer view;
	if (PyObject_GetBuffer(arg, &view, PyBUF_SIMPLE) < 0)
		return NULL;
	uint64_t hash = vd_fnv1a(view.buf, (size_t)view.len);
	PyBuffer_Release(&view);
	return PyLong_FromUnsignedLongLong(hash);
}

/* ---- DNS ---- */

static PyObject *native_dns_names(PyObject *module, PyObject *args)
{
	(void)module;
	PyObject *bytes, *result = NULL;
	Py_buffer offsets;
	if (!PyArg_ParseTuple(args, "Sy*:dns_names", &bytes, &offsets))
		return NULL;
	struct vd_heap heap;
	if (!open_heap(bytes, &offsets, &heap))
		goto done;
	uint8_t *names = PyMem_Malloc(heap.rows * VD_DNS_NAME + 1);
	uint32_t *sizes = PyMem_Malloc(heap.rows * sizeof(uint32_t) + 1);
	if (!names || !sizes) {
		PyErr_NoMemory();
		goto free;
	}
	bool good = true;
	uint32_t total = 0;
	Py_BEGIN_ALLOW_THREADS
	for (size_t row = 0; row < heap.rows; row++) {
		const uint8_t *p;
		size_t n, size = 0;
		good = vd_heap_tail(&heap, row, &p, &n);
		if (!good)
			break;
		uint8_t name[VD_DNS_NAME];
		if (vd_dns_question(p, n, name, &size))
			memcpy(names + total, name, size);
		sizes[row] = (uint32_t)size;
		total += (uint32_t)size;
	}
	Py_END_ALLOW_THREADS
	if (!good) {
		bad_offsets();
		goto free;
	}
	struct vd_heap_out out;
	result = new_heap((uint32_t)heap.rows, total, &out);
	for (size_t row = 0, from = 0; result && row < heap.rows; from += sizes[row], row++) {
		memcpy(out.data + out.at, names + from, sizes[row]);
		out.at += sizes[row];
		out.data[out.at++] = 0;
		out.offsets[row + 1] = out.at;
	}
free:
	PyMem_Free(names);
	PyMem_Free(sizes);
done:
	PyBuffer_Release(&offsets);
	return result;
}

static PyObject *native_dns_match(PyObject *module, PyObject *args)
{
	(void)module;
	PyObject *bytes, *result = NULL;
	Py_buffer offsets, table;
	if (!PyArg_ParseTuple(args, "Sy*y*:dns_match", &bytes, &offsets, &table))
		return NULL;
	struct vd_heap heap;
	uint32_t *rows = NULL;
	if (table.len % 8) {
		PyErr_Format(PyExc_ValueError, "table: %zd bytes are not uint64", table.len);
	} else if (open_heap(bytes, &offsets, &heap)) {
		rows = PyMem_Malloc(heap.rows * sizeof(uint32_t) + 1);
		if (!rows)
			PyErr_NoMemory();
	}
	if (rows) {
		size_t count = 0;
		bool good = true;
		Py_BEGIN_ALLOW_THREADS
		for (size_t row = 0; row < heap.rows; row++) {
			const uint8_t *p;
			size_t n;
			good = vd_heap_tail(&heap, row, &p, &n);
			if (!good)
				break;
			if (vd_dns_match(p, n, table.buf, (size_t)table.len / 8))
				rows[count++] = (uint32_t)row;
		}
		Py_END_ALLOW_THREADS
		result = good ? PyBytes_FromStringAndSize((const char *)rows, (Py_ssize_t)(count * 4)) : bad_offsets();
		PyMem_Free(rows);
	}
	PyBuffer_Release(&table);
	PyBuffer_Release(&offsets);
	return result;
}

/* ---- Matcher ---- */

typedef struct {
	PyObject_HEAD
	struct vd_matcher *matcher;
	uint32_t count;
} Matcher;

static PyObject *matcher_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
	static char *names[] = {"literals", NULL};
	PyObject *given;
	if (!PyArg_ParseTupleAndKeywords(args, keywords, "O:Matcher", names, &given))
		return NULL;
	PyObject *literals = PySequence_Fast(given, "literals must be a sequence of bytes");
	if (!literals)
		return NULL;
	Matcher *self = NULL;
	Py_ssize_t count = PySequence_Fast_GET_SIZE(literals);
	size_t total = 0;
	for (Py_ssize_t i = 0; i < count; i++) {
		PyObject *literal = PySequence_Fast_GET_ITEM(literals, i);
		if (!PyBytes_Check(literal)) {
			PyErr_Format(PyExc_TypeError, "literal %zd is not bytes", i);
			goto done;
		}
		if (!PyBytes_GET_SIZE(literal)) {
			PyErr_Format(PyExc_ValueError, "literal %zd is empty", i);
			goto done;
		}
		total += (size_t)PyBytes_GET_SIZE(literal);
		if (!check_size((Py_ssize_t)total))
			goto done;
	}
	uint8_t *text = PyMem_Malloc(total + 1);
	uint32_t *at = PyMem_Malloc(((size_t)count + 1) * sizeof(uint32_t));
	if (!text || !at) {
		PyErr_NoMemory();
	} else {
		at[0] = 0;
		for (Py_ssize_t i = 0; i < count; i++) {
			PyObject *literal = PySequence_Fast_GET_ITEM(literals, i);
			memcpy(text + at[i], PyBytes_AS_STRING(literal), (size_t)PyBytes_GET_SIZE(literal));
			at[i + 1] = at[i] + (uint32_t)PyBytes_GET_SIZE(literal);
		}
		self = (Matcher *)type->tp_alloc(type, 0);
		if (self) {
			self->count = (uint32_t)count;
			self->matcher = vd_matcher_new(text, at, self->count);
			if (!self->matcher) {
				Py_CLEAR(self);
				PyErr_NoMemory();
			}
		}
	}
	PyMem_Free(text);
	PyMem_Free(at);
done:
	Py_DECREF(literals);
	return (PyObject *)self;
}

static void matcher_dealloc(PyObject *object)
{
	PyTypeObject *type = Py_TYPE(object);
	vd_matcher_free(((Matcher *)object)->matcher);
	type->tp_free(object);
	Py_DECREF(type);
}

static Py_ssize_t matcher_length(PyObject *object) { return ((Matcher *)object)->count; }

static PyObject *matcher_search(PyObject *object, PyObject *args)
{
	PyObject *bytes, *result = NULL;
	Py_buffer offsets;
	if (!PyArg_ParseTuple(args, "Sy*:search", &bytes, &offsets))
		return NULL;
	struct vd_heap heap;
	if (open_heap(bytes, &offsets, &heap)) {
		struct vd_pairs pairs;
		bool good;
		Py_BEGIN_ALLOW_THREADS
		good = vd_matcher_search(((Matcher *)object)->matcher, &heap, &pairs);
		Py_END_ALLOW_THREADS
		Py_ssize_t size = (Py_ssize_t)(pairs.count * 4);
		result = good ? Py_BuildValue("(y#y#)", pairs.count ? (const char *)pairs.rows : "", size,
					      pairs.count ? (const char *)pairs.literals : "", size)
			      : PyErr_NoMemory();
		free(pairs.rows);
		free(pairs.literals);
	}
	PyBuffer_Release(&offsets);
	return result;
}

static PyMethodDef matcher_methods[] = {
	{"search", matcher_search, METH_VARARGS, "search(heap, offsets) -> (rows, literals)"},
	{NULL, NULL, 0, NULL},
};

static PyType_Slot matcher_slots[] = {
	{Py_tp_new, matcher_new},
	{Py_tp_dealloc, matcher_dealloc},
	{Py_tp_methods, matcher_methods},
	{Py_sq_length, matcher_length},
	{Py_tp_doc, "Search for many literals at once in a heap of tails."},
	{0, NULL},
};

static PyType_Spec matcher_spec = {
	"vedette_events._native.Matcher", sizeof(Matcher), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, matcher_slots,
};

/* ---- Sieve ---- */

typedef struct {
	PyObject_HEAD
	struct vd_sieve sieve;
	PyObject *parts; /* tuple of the bytes that the sieve points into */
	Py_ssize_t watched, late_tails;
} Sieve;

enum { PARTS = 8 };

static PyObject *sieve_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
	static char *names[] = {"row_size", "watched", "late_tails", "masks", "plans", "groups",
				"literals", "indexes", "values", "lates", "text", NULL};
	Py_ssize_t row_size, watched, late_tails;
	PyObject *parts[PARTS];
	if (!PyArg_ParseTupleAndKeywords(args, keywords, "nnnSSSSSSSS:Sieve", names, &row_size, &watched, &late_tails,
					 &parts[0], &parts[1], &parts[2], &parts[3], &parts[4], &parts[5], &parts[6],
					 &parts[7]))
		return NULL;
	static const size_t sizes[PARTS] = {
		sizeof(struct vd_mask), sizeof(struct vd_plan), sizeof(struct vd_group), 4, 4, 8, sizeof(struct vd_late), 1};
	size_t counts[PARTS];
	for (int i = 0; i < PARTS; i++) {
		size_t size = (size_t)PyBytes_GET_SIZE(parts[i]);
		if (!check_size((Py_ssize_t)size))
			return NULL;
		counts[i] = size / sizes[i];
		if (size % sizes[i])
			return PyErr_Format(PyExc_ValueError, "%s: %zu bytes are no multiple of %zu", names[i + 3], size, sizes[i]);
	}
	if (row_size < 1 || row_size > 65535 || watched < 0 || late_tails < 0 || late_tails > VD_MAX_TAILS || !counts[3])
		return PyErr_Format(PyExc_ValueError, "row_size, watched, late_tails or literals out of bounds");
	Sieve *self = (Sieve *)type->tp_alloc(type, 0);
	if (!self)
		return NULL;
	self->watched = watched;
	self->late_tails = late_tails;
	self->parts = PyTuple_New(PARTS);
	for (int i = 0; self->parts && i < PARTS; i++)
		PyTuple_SET_ITEM(self->parts, i, Py_NewRef(parts[i]));
	self->sieve = (struct vd_sieve){
		.row_size = (size_t)row_size,
		.masks = (const struct vd_mask *)PyBytes_AS_STRING(parts[0]),
		.plans = (const struct vd_plan *)PyBytes_AS_STRING(parts[1]),
		.groups = (const struct vd_group *)PyBytes_AS_STRING(parts[2]),
		.literals = (const uint32_t *)PyBytes_AS_STRING(parts[3]),
		.indexes = (const uint32_t *)PyBytes_AS_STRING(parts[4]),
		.values = (const uint8_t *)PyBytes_AS_STRING(parts[5]),
		.lates = (const struct vd_late *)PyBytes_AS_STRING(parts[6]),
		.text = (const uint8_t *)PyBytes_AS_STRING(parts[7]),
		.mask_count = (uint32_t)counts[0],
		.plan_count = (uint32_t)counts[1],
		.group_count = (uint32_t)counts[2],
		.literal_count = (uint32_t)counts[3] - 1,
		.late_count = (uint32_t)counts[6],
	};
	if (self->parts && !vd_sieve_check(&self->sieve, 8 * counts[5], counts[4], (size_t)watched, (size_t)late_tails, counts[7]))
		PyErr_SetString(PyExc_ValueError, "the sieve's parts do not fit each other");
	if (PyErr_Occurred())
		Py_CLEAR(self);
	return (PyObject *)self;
}

static void sieve_dealloc(PyObject *object)
{
	PyTypeObject *type = Py_TYPE(object);
	Py_XDECREF(((Sieve *)object)->parts);
	type->tp_free(object);
	Py_DECREF(type);
}

/* {answer: uint32 rows} of sorted keys. */
static PyObject *rows_by_answer(const struct vd_keys *keys)
{
	PyObject *result = PyDict_New();
	for (size_t from = 0, to; result && from < keys->count; from = to) {
		uint32_t answer = (uint32_t)(keys->keys[from] >> 32), *rows;
		for (to = from; to < keys->count && keys->keys[to] >> 32 == answer; to++)
			;
		PyObject *number = PyLong_FromUnsignedLong(answer), *bytes = new_bytes((to - from) * 4, &rows);
		for (size_t i = from; bytes && i < to; i++)
			rows[i - from] = (uint32_t)keys->keys[i];
		if (!number || !bytes || PyDict_SetItem(result, number, bytes) < 0)
			Py_CLEAR(result);
		Py_XDECREF(number);
		Py_XDECREF(bytes);
	}
	return result;
}

static PyObject *sieve_select(PyObject *object, PyObject *args)
{
	Sieve *self = (Sieve *)object;
	Py_buffer rows;
	PyObject *given, *sets, *late, *result = NULL;
	Py_buffer late_offsets[VD_MAX_TAILS];
	Py_ssize_t opened = 0;
	struct vd_heap late_heaps[VD_MAX_TAILS];
	if (!PyArg_ParseTuple(args, "y*O!O!O!:select", &rows, &PyTuple_Type, &sets, &PyTuple_Type, &given, &PyTuple_Type, &late))
		return NULL;
	Py_ssize_t tails = PyTuple_GET_SIZE(given);
	struct vd_found *found = PyMem_Calloc((size_t)tails + 1, sizeof(*found));
	struct vd_watched *watched = PyMem_Calloc((size_t)self->watched + 1, sizeof(*watched));
	size_t count = (size_t)rows.len / self->sieve.row_size;
	if (!found || !watched) {
		PyErr_NoMemory();
		goto done;
	}
	if (!check_size(rows.len))
		goto done;
	if ((size_t)rows.len % self->sieve.row_size || PyTuple_GET_SIZE(sets) != self->watched ||
	    PyTuple_GET_SIZE(late) != self->late_tails) {
		PyErr_SetString(PyExc_ValueError, "rows or watched values of another sieve");
		goto done;
	}
	for (Py_ssize_t i = 0; i < self->watched; i++) {
		PyObject *set = PyTuple_GET_ITEM(sets, i);
		if (!PyBytes_Check(set)) {
			PyErr_SetString(PyExc_TypeError, "watched values must be bytes");
			goto done;
		}
		watched[i] = (struct vd_watched){(const uint8_t *)PyBytes_AS_STRING(set), (size_t)PyBytes_GET_SIZE(set) / 8};
	}
	for (Py_ssize_t i = 0; i < tails; i++) {
		PyObject *hit_rows, *literals;
		unsigned int first;
		if (!PyArg_ParseTuple(PyTuple_GET_ITEM(given, i), "SSI", &hit_rows, &literals, &first))
			goto done;
		size_t size = (size_t)PyBytes_GET_SIZE(hit_rows);
		if (size != (size_t)PyBytes_GET_SIZE(literals) || size % 4 || first > self->sieve.literal_count) {
			PyErr_SetString(PyExc_ValueError, "rows and literals do not fit each other");
			goto done;
		}
		found[i] = (struct vd_found){.rows = (const uint8_t *)PyBytes_AS_STRING(hit_rows),
					     .literals = (const uint8_t *)PyBytes_AS_STRING(literals),
					     .count = size / 4,
					     .first = first};
	}
	for (; opened < self->late_tails; opened++) {
		PyObject *data;
		if (!PyArg_ParseTuple(PyTuple_GET_ITEM(late, opened), "Sy*", &data, &late_offsets[opened]))
			goto done;
		if (!open_heap(data, &late_offsets[opened], &late_heaps[opened])) {
			opened++;
			goto done;
		}
	}
	struct vd_keys keys;
	bool good;
	Py_BEGIN_ALLOW_THREADS
	good = vd_sieve_select(&self->sieve, rows.buf, count, watched, found, (size_t)tails, late_heaps, &keys);
	Py_END_ALLOW_THREADS
	result = good ? rows_by_answer(&keys) : PyErr_NoMemory();
	free(keys.keys);
done:
	while (opened > 0)
		PyBuffer_Release(&late_offsets[--opened]);
	PyMem_Free(found);
	PyMem_Free(watched);
	PyBuffer_Release(&rows);
	return result;
}

static PyMethodDef sieve_methods[] = {
	{"select", sieve_select, METH_VARARGS, "select(rows, watched, found, late) -> {answer: rows}"},
	{NULL, NULL, 0, NULL},
};

static PyType_Slot sieve_slots[] = {
	{Py_tp_new, sieve_new},
	{Py_tp_dealloc, sieve_dealloc},
	{Py_tp_methods, sieve_methods},
	{Py_tp_doc, "Which rows pass which plans."},
	{0, NULL},
};

static PyType_Spec sieve_spec = {
	"vedette_events._native.Sieve", sizeof(Sieve), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, sieve_slots,
};

static PyObject *native_shell_arguments(PyObject *module, PyObject *args)
{
	(void)module;
	PyObject *path_bytes, *argv_bytes, *result = NULL;
	Py_buffer path_offsets, argv_offsets, rows;
	if (!PyArg_ParseTuple(args, "Sy*Sy*y*:shell_arguments", &path_bytes, &path_offsets, &argv_bytes, &argv_offsets, &rows))
		return NULL;
	struct vd_heap paths, argvs;
	uint8_t *out;
	size_t count = (size_t)rows.len / 4;
	if (open_heap(path_bytes, &path_offsets, &paths) && open_heap(argv_bytes, &argv_offsets, &argvs) &&
	    (result = new_bytes(count, &out))) {
		bool good = rows.len % 4 == 0;
		for (size_t i = 0; i < count && good; i++) {
			const uint8_t *path, *argv;
			size_t n, m, row = vd_load32((const uint8_t *)rows.buf + 4 * i);
			good = row < paths.rows && row < argvs.rows && vd_heap_tail(&paths, row, &path, &n) &&
			       vd_heap_tail(&argvs, row, &argv, &m);
			if (good)
				out[i] = vd_shell_arguments(path, n, argv, m);
		}
		if (!good) {
			Py_CLEAR(result);
			bad_offsets();
		}
	}
	PyBuffer_Release(&rows);
	PyBuffer_Release(&argv_offsets);
	PyBuffer_Release(&path_offsets);
	return result;
}

/* ---- Ring ---- */

typedef struct {
	PyObject_HEAD
	struct vd_ring ring;
	uint8_t *consumer_page; /* NULL: closed */
	uint8_t *mapping;       /* producer page, data, data again */
	size_t page;
	struct vd_executables *executables;
	uint64_t malformed;
	uint64_t judged; /* position up to which malformed samples are counted */
	bool draining; /* in another thread, without the interpreter's lock */
} Ring;

static void ring_unmap(Ring *self)
{
	if (self->mapping)
		munmap(self->mapping, self->page + 2 * self->ring.size);
	if (self->consumer_page)
		munmap(self->consumer_page, self->page);
	self->mapping = self->consumer_page = NULL;
}

/* The kernel's layout (kernel/bpf/ringbuf.c): consumer page, producer page, data pages, and the data pages once more.
 * The second mapping of the data is made here, from the first one's file offset, so that a plain file of the same
 * layout (without the repetition) can stand in for the kernel in tests. */
static bool ring_map(Ring *self, int fd)
{
	size_t size = self->ring.size, page = self->page;
	void *consumer = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (consumer == MAP_FAILED)
		return false;
	self->consumer_page = consumer;
	uint8_t *base = mmap(NULL, page + 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (base == MAP_FAILED)
		return false;
	self->mapping = base;
	if (mmap(base, page + size, PROT_READ, MAP_SHARED | MAP_FIXED, fd, (off_t)page) == MAP_FAILED ||
	    mmap(base + page + size, size, PROT_READ, MAP_SHARED | MAP_FIXED, fd, (off_t)(2 * page)) == MAP_FAILED)
		return false;
	self->ring.producer = base;
	self->ring.data = base + page;
	return true;
}

static PyObject *ring_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
	static char *names[] = {"map_fd", "size", NULL};
	int fd;
	unsigned long long size;
	if (!PyArg_ParseTupleAndKeywords(args, keywords, "iK:Ring", names, &fd, &size))
		return NULL;
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	if (size < page || size > VD_MAX_BATCH || (size & (size - 1))) {
		PyErr_Format(PyExc_ValueError, "size %llu is not a power of two from one page to %zu", size, VD_MAX_BATCH);
		return NULL;
	}
	struct stat status;
	if (fstat(fd, &status) < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	if (S_ISREG(status.st_mode) && (unsigned long long)status.st_size < 2 * page + size) {
		PyErr_Format(PyExc_ValueError, "a file of %lld bytes is too short for a ring of %llu",
			     (long long)status.st_size, size);
		return NULL;
	}
	Ring *self = (Ring *)type->tp_alloc(type, 0);
	if (!self)
		return NULL;
	self->page = page;
	self->ring.size = size;
	/* calloc of this size is fresh pages: what is not used costs no memory. */
	self->executables = calloc(1, sizeof(*self->executables));
	if (!self->executables) {
		PyErr_NoMemory();
		Py_CLEAR(self);
	} else if (!ring_map(self, fd)) {
		PyErr_SetFromErrno(PyExc_OSError);
		Py_CLEAR(self);
	}
	return (PyObject *)self;
}

static void ring_dealloc(PyObject *object)
{
	PyTypeObject *type = Py_TYPE(object);
	Ring *self = (Ring *)object;
	ring_unmap(self);
	free(self->executables);
	type->tp_free(object);
	Py_DECREF(type);
}

static bool ring_usable(Ring *self)
{
	if (!self->consumer_page)
		PyErr_SetString(PyExc_ValueError, "the ring is closed");
	else if (self->draining)
		PyErr_SetString(PyExc_RuntimeError, "the ring is being drained by another thread");
	else
		return true;
	return false;
}

static uint64_t *consumer_of(Ring *self) { return (uint64_t *)self->consumer_page; }

static PyObject *ring_drain(PyObject *object, PyObject *args)
{
	Ring *self = (Ring *)object;
	unsigned long long max_bytes = 1 << 20;
	if (!PyArg_ParseTuple(args, "|K:drain", &max_bytes) || !ring_usable(self))
		return NULL;
	uint64_t from = __atomic_load_n(consumer_of(self), __ATOMIC_RELAXED);
	uint64_t pending = vd_ring_producer(&self->ring) - from;
	uint64_t capacity = max_bytes > VD_RECORD_BOUND ? max_bytes : VD_RECORD_BOUND;
	if (capacity > pending)
		capacity = pending;
	if (capacity > self->ring.size)
		capacity = self->ring.size; /* corrupt, as the drain will find */
	uint8_t *out;
	PyObject *records = new_bytes(capacity, &out);
	if (!records)
		return NULL;
	struct vd_drained drained;
	enum vd_drain_status status;
	self->draining = true;
	Py_BEGIN_ALLOW_THREADS
	status = vd_ring_drain(&self->ring, from, out, capacity, self->executables, self->judged, &drained);
	Py_END_ALLOW_THREADS
	self->draining = false;
	if (status != VD_DRAIN_OK) {
		Py_DECREF(records);
		PyErr_Format(RingError, "the ring is corrupt at position %llu", (unsigned long long)drained.position);
		return NULL;
	}
	if (_PyBytes_Resize(&records, (Py_ssize_t)drained.bytes) < 0)
		return NULL;
	self->malformed += drained.malformed;
	if (drained.position > self->judged)
		self->judged = drained.position;
	return Py_BuildValue("(NKK)", records, (unsigned long long)drained.position, (unsigned long long)drained.records);
}

static PyObject *ring_commit(PyObject *object, PyObject *argument)
{
	Ring *self = (Ring *)object;
	unsigned long long position = PyLong_AsUnsignedLongLong(argument);
	if ((position == (unsigned long long)-1 && PyErr_Occurred()) || !ring_usable(self))
		return NULL;
	uint64_t consumer = __atomic_load_n(consumer_of(self), __ATOMIC_RELAXED);
	uint64_t producer = vd_ring_producer(&self->ring);
	if (position % 8 || position < consumer || position > producer) {
		PyErr_Format(PyExc_ValueError, "position %llu is not a multiple of 8 from %llu to %llu", position,
			     (unsigned long long)consumer, (unsigned long long)producer);
		return NULL;
	}
	/* Pairs with the kernel's smp_load_acquire of consumer_pos: the samples are copied before they may go. */
	__atomic_store_n(consumer_of(self), position, __ATOMIC_RELEASE);
	Py_RETURN_NONE;
}

static PyObject *ring_new_executables(PyObject *object, PyObject *ignored)
{
	(void)ignored;
	Ring *self = (Ring *)object;
	if (!ring_usable(self))
		return NULL;
	struct vd_executables *executables = self->executables;
	PyObject *list = PyList_New(executables->count);
	for (uint32_t i = 0; list && i < executables->count; i++) {
		const struct vd_executable *e = &executables->fresh[i];
		PyObject *entry = Py_BuildValue("(IIKKy#)", e->pid, e->dev, (unsigned long long)e->ino,
						(unsigned long long)e->ctime,
						(const char *)executables->paths + e->path_at, (Py_ssize_t)e->path_size);
		if (!entry)
			Py_CLEAR(list);
		else
			PyList_SET_ITEM(list, i, entry);
	}
	if (list)
		executables->count = executables->paths_size = 0;
	return list;
}

static PyObject *ring_close(PyObject *object, PyObject *ignored)
{
	(void)ignored;
	Ring *self = (Ring *)object;
	if (self->consumer_page && !ring_usable(self))
		return NULL;
	ring_unmap(self);
	Py_RETURN_NONE;
}

static PyObject *ring_consumer(PyObject *object, void *ignored)
{
	(void)ignored;
	Ring *self = (Ring *)object;
	if (!ring_usable(self))
		return NULL;
	return PyLong_FromUnsignedLongLong(__atomic_load_n(consumer_of(self), __ATOMIC_RELAXED));
}

static PyObject *ring_producer(PyObject *object, void *ignored)
{
	(void)ignored;
	Ring *self = (Ring *)object;
	if (!ring_usable(self))
		return NULL;
	return PyLong_FromUnsignedLongLong(vd_ring_producer(&self->ring));
}

static PyObject *ring_size(PyObject *object, void *ignored)
{
	(void)ignored;
	return PyLong_FromUnsignedLongLong(((Ring *)object)->ring.size);
}

static PyObject *ring_malformed(PyObject *object, void *ignored)
{
	(void)ignored;
	return PyLong_FromUnsignedLongLong(((Ring *)object)->malformed);
}

static PyMethodDef ring_methods[] = {
	{"drain", ring_drain, METH_VARARGS, "drain(max_bytes=1048576) -> (records, position, count)"},
	{"commit", ring_commit, METH_O, "commit(position)"},
	{"drain_new_executables", ring_new_executables, METH_NOARGS,
	 "drain_new_executables() -> [(pid, dev, ino, ctime, path)]"},
	{"close", ring_close, METH_NOARGS, "close()"},
	{NULL, NULL, 0, NULL},
};

static PyGetSetDef ring_attributes[] = {
	{"consumer", ring_consumer, NULL, "Position up to which samples are given back to the kernel.", NULL},
	{"producer", ring_producer, NULL, "Position up to which the kernel has reserved samples.", NULL},
	{"size", ring_size, NULL, "Size of the data in bytes.", NULL},
	{"malformed", ring_malformed, NULL, "Samples skipped so far because they hold no record.", NULL},
	{NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot ring_slots[] = {
	{Py_tp_new, ring_new},
	{Py_tp_dealloc, ring_dealloc},
	{Py_tp_methods, ring_methods},
	{Py_tp_getset, ring_attributes},
	{Py_tp_doc, "Consumer of a BPF ring buffer."},
	{0, NULL},
};

static PyType_Spec ring_spec = {
	"vedette_events._native.Ring", sizeof(Ring), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, ring_slots,
};

/* ---- allocator ---- */

static PyObject *native_keep_freed_memory(PyObject *module, PyObject *args)
{
	(void)module;
	unsigned long long bytes = 256ull << 20;
	if (!PyArg_ParseTuple(args, "|K:keep_freed_memory", &bytes))
		return NULL;
	if (bytes > INT_MAX)
		return PyErr_Format(PyExc_ValueError, "%llu bytes are more than %d", bytes, INT_MAX);
#ifdef __GLIBC__
	/* 32 MiB is the most that mallopt(3) takes for blocks of their own; a batch's blocks are smaller. */
	mallopt(M_MMAP_THRESHOLD, 32 << 20);
	mallopt(M_TRIM_THRESHOLD, (int)bytes);
#endif
	Py_RETURN_NONE;
}

/* ---- module ---- */

static PyMethodDef functions[] = {
	{"split", native_split, METH_VARARGS, "split(records, layouts) -> {code: (fixed, order, ((heap, offsets), ...))}"},
	{"scan", native_scan, METH_O, "scan(records) -> (count, first time, last time)"},
	{"basename_hashes", native_basename_hashes, METH_VARARGS, "basename_hashes(heap, offsets) -> uint64 array"},
	{"tail_hashes", native_tail_hashes, METH_VARARGS, "tail_hashes(heap, offsets) -> uint64 array"},
	{"fnv1a", native_fnv1a, METH_O, "fnv1a(data) -> int"},
	{"dns_names", native_dns_names, METH_VARARGS, "dns_names(heap, offsets) -> (heap, offsets)"},
	{"keep_freed_memory", native_keep_freed_memory, METH_VARARGS, "keep_freed_memory(bytes=268435456)"},
	{"shell_arguments", native_shell_arguments, METH_VARARGS, "shell_arguments(paths, offsets, argvs, offsets, rows) -> flags"},
	{"dns_match", native_dns_match, METH_VARARGS, "dns_match(heap, offsets, table) -> rows"},
	{NULL, NULL, 0, NULL},
};

static int add(PyObject *module, const char *name, PyObject *object)
{
	int failed = !object || PyModule_AddObjectRef(module, name, object) < 0;
	Py_XDECREF(object);
	return failed;
}

static int execute(PyObject *module)
{
	SplitError = PyErr_NewException("vedette_events._native.SplitError", PyExc_ValueError, NULL);
	RingError = PyErr_NewException("vedette_events._native.RingError", PyExc_RuntimeError, NULL);
	Py_XINCREF(SplitError); /* one reference for the module, one for this file */
	Py_XINCREF(RingError);
	return add(module, "SplitError", SplitError) || add(module, "RingError", RingError) ||
			       add(module, "Matcher", PyType_FromSpec(&matcher_spec)) ||
			       add(module, "Ring", PyType_FromSpec(&ring_spec)) ||
			       add(module, "Sieve", PyType_FromSpec(&sieve_spec)) ||
			       PyModule_AddIntConstant(module, "SHELL_GIVEN", VD_SHELL_GIVEN) < 0 ||
			       PyModule_AddIntConstant(module, "SHELL_DASH_C", VD_SHELL_DASH_C) < 0 ||
			       PyModule_AddIntConstant(module, "SHELL_BUSYBOX", VD_SHELL_BUSYBOX) < 0 ||
			       PyModule_AddIntConstant(module, "MAX_TYPES", VD_MAX_TYPES) < 0 ||
			       PyModule_AddIntConstant(module, "MAX_TAILS", VD_MAX_TAILS) < 0
		       ? -1
		       : 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT, "_native", "C helpers of the event path.", 0, functions, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
