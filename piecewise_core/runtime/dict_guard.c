/* Tells in one call whether many dicts and tensors are as they were. See dict_guard.py. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#ifdef Py_GIL_DISABLED
#error "the counter below relies on the interpreter lock"
#endif

/* Torch's functions, which take what stands at ``handle`` in objects of ``kind``. They give 0 where
   they could answer, as none can for a sparse tensor, and keep what they point to. */
typedef struct {
    int32_t (*address)(void *, void **);
    int32_t (*dtype)(void *, int32_t *);
    int32_t (*dim)(void *, int64_t *);
    int32_t (*sizes)(void *, int64_t **);
    int32_t (*strides)(void *, int64_t **);
    intptr_t handle;
    PyTypeObject *kind;
} Torch;

/* How a tensor lies. Its sizes and strides follow where it is put down. */
typedef struct {
    void *address;
    int64_t dtype, dim;
} Lies;

enum { SAME, WRITTEN, MOVED };

/* What a container keeps its entries in: a dict itself, or the dict of a class. */
static PyObject *dict_of(PyObject *container) {
    return PyType_Check(container) ? ((PyTypeObject *)container)->tp_dict : container;
}

#if PY_VERSION_HEX >= 0x030C0000

/* Dicts no longer count their writes where others can see it: a watcher counts them, for each dict
   by itself, so that one model's dicts raise no alarm for another's. */
typedef struct {
    PyObject *dict; /* not owned: gone with the dict, of which the watcher is told */
    uint64_t writes;
} Counted;

static Counted *table;
static size_t capacity, used; /* a power of two, or 0; slots that are or were in use */

/* Writes to any watched dict: as long as it stands still, nobody has to look at each. */
static uint64_t all_writes;

static char gone; /* its address stands where a dict was */

static Counted *slot_of(PyObject *dict) {
    if (capacity == 0)
        return NULL;
    size_t i = ((uintptr_t)dict >> 4) * 0x9E3779B97F4A7C15u & (capacity - 1);
    while (table[i].dict != NULL && table[i].dict != dict)
        i = (i + 1) & (capacity - 1);
    return &table[i];
}

static int make_room(void) {
    if (used * 2 < capacity)
        return 0;
    Counted *old = table;
    size_t before = capacity, room = capacity ? capacity * 2 : 256;
    Counted *fresh = PyMem_Calloc(room, sizeof(Counted));
    if (fresh == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    table = fresh;
    capacity = room;
    used = 0;
    for (size_t i = 0; i < before; i++)
        if (old[i].dict != NULL && old[i].dict != (PyObject *)&gone) {
            *slot_of(old[i].dict) = old[i];
            used++;
        }
    PyMem_Free(old);
    return 0;
}

/* Python has eight watchers in all, some of them its own: one for each module, given back with it. */
typedef struct {
    int id;
    int is_had;
} Watcher;

static int on_write(PyDict_WatchEvent event, PyObject *dict, PyObject *key, PyObject *value) {
    all_writes++;
    Counted *slot = slot_of(dict);
    if (slot == NULL || slot->dict != dict)
        return 0;
    slot->writes++;
    if (event == PyDict_EVENT_DEALLOCATED)
        slot->dict = (PyObject *)&gone;
    return 0;
}

/* The count of all, then one for each. */
static Py_ssize_t stamp_size(PyObject *dicts) {
    return (PyTuple_GET_SIZE(dicts) + 1) * sizeof(uint64_t);
}

static uint64_t version_of(PyObject *dicts, Py_ssize_t i) {
    PyObject *dict = dict_of(PyTuple_GET_ITEM(dicts, i));
    Counted *slot = slot_of(dict);
    return slot != NULL && slot->dict == dict ? slot->writes : UINT64_MAX;
}

static void give_watcher_back(void *module) {
    Watcher *watcher = PyModule_GetState(module);
    if (watcher != NULL && watcher->is_had && PyDict_ClearWatcher(watcher->id) < 0)
        PyErr_Clear();
}

static int watch(Watcher *watcher, PyObject *dict) {
    if (PyDict_Watch(watcher->id, dict) < 0 || make_room() < 0)
        return -1;
    Counted *slot = slot_of(dict);
    if (slot->dict == NULL) {
        slot->dict = dict;
        slot->writes = 0;
        used++;
    }
    return 0;
}

static int put_stamp(PyObject *module, PyObject *dicts, char *stamp) {
    Watcher *watcher = PyModule_GetState(module);
    if (!watcher->is_had) {
        if ((watcher->id = PyDict_AddWatcher(on_write)) < 0)
            return -1;
        watcher->is_had = 1;
    }
    uint64_t *counts = (uint64_t *)stamp;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(dicts); i++) {
        if (watch(watcher, dict_of(PyTuple_GET_ITEM(dicts, i))) < 0)
            return -1;
        counts[i + 1] = version_of(dicts, i);
    }
    counts[0] = all_writes;
    return 0;
}

static uint64_t stamped(const char *stamp, Py_ssize_t i) { return ((const uint64_t *)stamp)[i + 1]; }

static int is_written(PyObject *dicts, char *stamp) {
    uint64_t *counts = (uint64_t *)stamp;
    if (counts[0] == all_writes)
        return 0;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(dicts); i++)
        if (counts[i + 1] != version_of(dicts, i))
            return 1;
    counts[0] = all_writes;
    return 0;
}

#else /* before Python 3.12 every dict counts its own writes */

typedef char Watcher;

#define give_watcher_back NULL

static Py_ssize_t stamp_size(PyObject *dicts) { return PyTuple_GET_SIZE(dicts) * sizeof(uint64_t); }

static uint64_t version_of(PyObject *dicts, Py_ssize_t i) {
    return ((PyDictObject *)dict_of(PyTuple_GET_ITEM(dicts, i)))->ma_version_tag;
}

static int put_stamp(PyObject *module, PyObject *dicts, char *stamp) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(dicts); i++)
        ((uint64_t *)stamp)[i] = version_of(dicts, i);
    return 0;
}

static uint64_t stamped(const char *stamp, Py_ssize_t i) { return ((const uint64_t *)stamp)[i]; }

static int is_written(PyObject *dicts, char *stamp) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(dicts); i++)
        if (stamped(stamp, i) != version_of(dicts, i))
            return 1;
    return 0;
}

#endif

static int check_dicts(PyObject *dicts) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(dicts); i++)
        if (dict_of(PyTuple_GET_ITEM(dicts, i)) == NULL ||
            !PyDict_Check(dict_of(PyTuple_GET_ITEM(dicts, i)))) {
            PyErr_SetString(PyExc_TypeError, "not all are dicts or classes with one");
            return -1;
        }
    return 0;
}

/* stamp(dicts: tuple, into: bytearray): put down that the dicts, and those of classes, are as they
   should be. */
static PyObject *stamp(PyObject *module, PyObject *args) {
    PyObject *dicts, *into;
    if (!PyArg_ParseTuple(args, "O!Y", &PyTuple_Type, &dicts, &into) || check_dicts(dicts) < 0)
        return NULL;
    if (PyByteArray_Resize(into, stamp_size(dicts)) < 0)
        return NULL;
    if (put_stamp(module, dicts, PyByteArray_AS_STRING(into)) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static const Torch *torch_of(PyObject *functions) {
    if (PyBytes_GET_SIZE(functions) == sizeof(Torch))
        return (const Torch *)PyBytes_AS_STRING(functions);
    PyErr_SetString(PyExc_ValueError, "not torch's functions");
    return NULL;
}

/* How ``tensor`` lies now; 0 where it is none, or torch cannot say. */
static int ask(const Torch *torch, PyObject *tensor, Lies *now, int64_t **sizes, int64_t **strides) {
    void *handle = (char *)tensor + torch->handle;
    int32_t dtype;
    if (!PyObject_TypeCheck(tensor, torch->kind) || torch->dtype(handle, &dtype) ||
        torch->dim(handle, &now->dim) || torch->sizes(handle, sizes) ||
        torch->strides(handle, strides) || torch->address(handle, &now->address))
        return 0;
    now->dtype = dtype;
    return 1;
}

/* lies(functions: bytes, tensors: tuple) -> bytes: where tensors lie, and how, for ``compare``.

   functions: a ``Torch``. */
static PyObject *lies(PyObject *module, PyObject *args) {
    PyObject *functions, *tensors;
    if (!PyArg_ParseTuple(args, "SO!", &functions, &PyTuple_Type, &tensors))
        return NULL;
    const Torch *torch = torch_of(functions);
    PyObject *found = torch ? PyByteArray_FromStringAndSize(NULL, 0) : NULL;
    for (Py_ssize_t i = 0; found != NULL && i < PyTuple_GET_SIZE(tensors); i++) {
        Lies now;
        int64_t *sizes, *strides;
        if (!ask(torch, PyTuple_GET_ITEM(tensors, i), &now, &sizes, &strides)) {
            PyErr_Format(PyExc_ValueError, "%zd is no tensor with strides", i);
            Py_CLEAR(found);
            break;
        }
        Py_ssize_t end = PyByteArray_GET_SIZE(found), each = now.dim * sizeof(int64_t);
        if (PyByteArray_Resize(found, end + sizeof(Lies) + 2 * each) < 0) {
            Py_CLEAR(found);
            break;
        }
        char *at = PyByteArray_AS_STRING(found) + end;
        memcpy(at, &now, sizeof(Lies));
        memcpy(at + sizeof(Lies), sizes, each);
        memcpy(at + sizeof(Lies) + each, strides, each);
    }
    PyObject *whole = found ? PyBytes_FromObject(found) : NULL;
    Py_XDECREF(found);
    return whole;
}

/* Whether the tensors lie as ``before``, which ends at ``end``, says. */
static int lie_as(const Torch *torch, PyObject *tensors, const char *before, const char *end) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tensors); i++) {
        const Lies *was = (const Lies *)before;
        Lies now;
        int64_t *sizes, *strides;
        if (end - before < (Py_ssize_t)sizeof(Lies) ||
            !ask(torch, PyTuple_GET_ITEM(tensors, i), &now, &sizes, &strides) ||
            now.address != was->address || now.dtype != was->dtype || now.dim != was->dim)
            return 0;
        Py_ssize_t each = now.dim * sizeof(int64_t);
        before += sizeof(Lies);
        if (end - before < 2 * each || memcmp(before, sizes, each) ||
            memcmp(before + each, strides, each))
            return 0;
        before += 2 * each;
    }
    return before == end;
}

/* compare(dicts: tuple, stamp: bytearray, functions: bytes, tensors: tuple, before: bytes) -> int

   before: what ``lies`` gave for the tensors.
   0: all is as it was; 1: a dict was written to; 2: none was, and a tensor lies elsewhere or
   otherwise. */
static PyObject *compare(PyObject *module, PyObject *args) {
    PyObject *dicts, *stamp, *functions, *tensors, *before;
    if (!PyArg_ParseTuple(args, "O!YSO!S", &PyTuple_Type, &dicts, &stamp, &functions,
                          &PyTuple_Type, &tensors, &before))
        return NULL;
    if (PyByteArray_GET_SIZE(stamp) != stamp_size(dicts))
        return PyErr_Format(PyExc_ValueError, "no stamp of these dicts");
    const Torch *torch = torch_of(functions);
    if (torch == NULL)
        return NULL;
    if (is_written(dicts, PyByteArray_AS_STRING(stamp)))
        return PyLong_FromLong(WRITTEN);
    const char *start = PyBytes_AS_STRING(before);
    int same = lie_as(torch, tensors, start, start + PyBytes_GET_SIZE(before));
    return PyLong_FromLong(same ? SAME : MOVED);
}

/* written(dicts: tuple, stamp: bytearray) -> list[int]: the places of those written to since. */
static PyObject *written(PyObject *module, PyObject *args) {
    PyObject *dicts, *stamp;
    if (!PyArg_ParseTuple(args, "O!Y", &PyTuple_Type, &dicts, &stamp))
        return NULL;
    if (PyByteArray_GET_SIZE(stamp) != stamp_size(dicts))
        return PyErr_Format(PyExc_ValueError, "no stamp of these dicts");
    PyObject *found = PyList_New(0);
    for (Py_ssize_t i = 0; found != NULL && i < PyTuple_GET_SIZE(dicts); i++) {
        if (stamped(PyByteArray_AS_STRING(stamp), i) == version_of(dicts, i))
            continue;
        PyObject *place = PyLong_FromSsize_t(i);
        if (place == NULL || PyList_Append(found, place) < 0)
            Py_CLEAR(found);
        Py_XDECREF(place);
    }
    return found;
}

/* Whether a function of no arguments answers as it did; one that raises answers otherwise. */
static int answers(PyObject *function, PyObject *held) {
    PyObject *now = PyObject_CallNoArgs(function);
    if (now == NULL) {
        PyErr_Clear();
        return 0;
    }
    int same = now == held;
    if (!same && Py_TYPE(now) == Py_TYPE(held))
        same = PyObject_RichCompareBool(now, held, Py_EQ);
    Py_DECREF(now);
    return same;
}

/* Whether a list, cell, function, class, entry (dict, key) or object (object,) is as it was: ``held``
   is a tuple of a list's items, a cell's content, a tuple of a function's code, defaults, keyword
   defaults and closure, the order of a class's bases, an entry's value, or an object's class. What
   is not there stands as the container itself. Anything else that can be called is asked. */
static int holds(PyObject *container, PyObject *held) {
    if (PyList_Check(container)) {
        Py_ssize_t count = PyList_GET_SIZE(container);
        if (!PyTuple_Check(held) || PyTuple_GET_SIZE(held) != count)
            return 0;
        for (Py_ssize_t i = 0; i < count; i++)
            if (PyList_GET_ITEM(container, i) != PyTuple_GET_ITEM(held, i))
                return 0;
        return 1;
    }
    if (PyCell_Check(container)) {
        PyObject *content = PyCell_GET(container);
        return (content == NULL ? container : content) == held;
    }
    if (PyFunction_Check(container)) {
        PyObject *parts[] = {PyFunction_GET_CODE(container), PyFunction_GET_DEFAULTS(container),
                             PyFunction_GET_KW_DEFAULTS(container), PyFunction_GET_CLOSURE(container)};
        for (int i = 0; i < 4; i++)
            if ((parts[i] == NULL ? Py_None : parts[i]) != PyTuple_GET_ITEM(held, i))
                return 0;
        return 1;
    }
    if (PyType_Check(container))
        return ((PyTypeObject *)container)->tp_mro == held;
    if (!PyTuple_Check(container))
        return answers(container, held);
    if (PyTuple_GET_SIZE(container) == 1)
        return (PyObject *)Py_TYPE(PyTuple_GET_ITEM(container, 0)) == held;
    PyObject *value = PyDict_GetItemWithError(PyTuple_GET_ITEM(container, 0),
                                              PyTuple_GET_ITEM(container, 1));
    if (value == NULL && PyErr_Occurred())
        return -1;
    return (value == NULL ? container : value) == held;
}

static int is_container(PyObject *one, PyObject *held) {
    if (PyFunction_Check(one))
        return PyTuple_Check(held) && PyTuple_GET_SIZE(held) == 4;
    if (PyTuple_Check(one))
        return PyTuple_GET_SIZE(one) == 1 ||
               (PyTuple_GET_SIZE(one) == 2 && PyDict_Check(PyTuple_GET_ITEM(one, 0)));
    return PyList_Check(one) || PyCell_Check(one) || PyCallable_Check(one);
}

/* state(dicts: tuple, stamp: bytearray, containers: tuple, held: tuple) -> int

   0: all is as it was; 1: a dict was written to, or a container holds something else. */
static PyObject *state(PyObject *module, PyObject *args) {
    PyObject *dicts, *stamp, *containers, *held;
    if (!PyArg_ParseTuple(args, "O!YO!O!", &PyTuple_Type, &dicts, &stamp, &PyTuple_Type,
                          &containers, &PyTuple_Type, &held))
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(containers);
    if (PyByteArray_GET_SIZE(stamp) != stamp_size(dicts) || PyTuple_GET_SIZE(held) != count)
        return PyErr_Format(PyExc_ValueError, "no stamp of these containers");
    if (is_written(dicts, PyByteArray_AS_STRING(stamp)))
        return PyLong_FromLong(WRITTEN);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *one = PyTuple_GET_ITEM(containers, i), *was = PyTuple_GET_ITEM(held, i);
        if (!is_container(one, was))
            return PyErr_Format(PyExc_TypeError, "container %zd is none", i);
        int same = holds(one, was);
        if (same < 0)
            return NULL;
        if (!same)
            return PyLong_FromLong(WRITTEN);
    }
    return PyLong_FromLong(SAME);
}

static PyMethodDef methods[] = {{"stamp", stamp, METH_VARARGS, NULL},
                                {"lies", lies, METH_VARARGS, NULL},
                                {"compare", compare, METH_VARARGS, NULL},
                                {"written", written, METH_VARARGS, NULL},
                                {"state", state, METH_VARARGS, NULL},
                                {NULL, NULL, 0, NULL}};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "piecewise_dict_guard", NULL, sizeof(Watcher), methods, slots, NULL, NULL,
    give_watcher_back};

PyMODINIT_FUNC PyInit_piecewise_dict_guard(void) { return PyModuleDef_Init(&definition); }
