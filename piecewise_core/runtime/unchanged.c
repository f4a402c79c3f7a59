/* Tells in one call whether many dicts and tensors are as they were. See unchanged.py. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#ifdef Py_GIL_DISABLED
#error "the counter below relies on the interpreter lock"
#endif

typedef void *(*AddressOf)(PyObject *);

enum { SAME, WRITTEN, MOVED };

#if PY_VERSION_HEX >= 0x030C0000

/* Writes to any dict that is watched. */
static uint64_t writes;

/* Python has eight watchers in all, some of them its own: one for each module, given back with it. */
typedef struct {
    int id;
    int is_had;
} Watcher;

static int on_write(PyDict_WatchEvent event, PyObject *dict, PyObject *key, PyObject *value) {
    writes++;
    return 0;
}

static Py_ssize_t stamp_size(PyObject *dicts) { return sizeof(writes); }

static void give_watcher_back(void *module) {
    Watcher *watcher = PyModule_GetState(module);
    if (watcher != NULL && watcher->is_had && PyDict_ClearWatcher(watcher->id) < 0)
        PyErr_Clear();
}

static int put_stamp(PyObject *module, PyObject *dicts, char *stamp) {
    Watcher *watcher = PyModule_GetState(module);
    if (!watcher->is_had) {
        if ((watcher->id = PyDict_AddWatcher(on_write)) < 0)
            return -1;
        watcher->is_had = 1;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(dicts); i++)
        if (PyDict_Watch(watcher->id, PyTuple_GET_ITEM(dicts, i)) < 0)
            return -1;
    memcpy(stamp, &writes, sizeof(writes));
    return 0;
}

static int is_written(PyObject *dicts, const char *stamp) {
    return memcmp(stamp, &writes, sizeof(writes)) != 0;
}

#else /* before Python 3.12 every dict counts its own writes */

typedef char Watcher;

#define give_watcher_back NULL

static Py_ssize_t stamp_size(PyObject *dicts) { return PyTuple_GET_SIZE(dicts) * sizeof(uint64_t); }

static uint64_t version_of(PyObject *dicts, Py_ssize_t i) {
    return ((PyDictObject *)PyTuple_GET_ITEM(dicts, i))->ma_version_tag;
}

static int put_stamp(PyObject *module, PyObject *dicts, char *stamp) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(dicts); i++)
        ((uint64_t *)stamp)[i] = version_of(dicts, i);
    return 0;
}

static int is_written(PyObject *dicts, const char *stamp) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(dicts); i++)
        if (((const uint64_t *)stamp)[i] != version_of(dicts, i))
            return 1;
    return 0;
}

#endif

static int check_dicts(PyObject *dicts) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(dicts); i++)
        if (!PyDict_Check(PyTuple_GET_ITEM(dicts, i))) {
            PyErr_SetString(PyExc_TypeError, "not all are dicts");
            return -1;
        }
    return 0;
}

/* stamp(dicts: tuple, into: bytearray): put down that the dicts are as they should be. */
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

/* compare(dicts: tuple, stamp: bytearray, address_of: int, tensors: tuple, addresses: bytes) -> int

   address_of: a function of torch's, as an int. addresses: one pointer for each tensor.
   0: all is as it was; 1: a dict was written to; 2: none was, and a tensor lies elsewhere. */
static PyObject *compare(PyObject *module, PyObject *args) {
    PyObject *dicts, *stamped, *function, *tensors, *addresses;
    if (!PyArg_ParseTuple(args, "O!YOO!S", &PyTuple_Type, &dicts, &stamped, &function,
                          &PyTuple_Type, &tensors, &addresses))
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(tensors);
    if (PyBytes_GET_SIZE(addresses) != count * (Py_ssize_t)sizeof(void *))
        return PyErr_Format(PyExc_ValueError, "not one address for each tensor");
    if (PyByteArray_GET_SIZE(stamped) != stamp_size(dicts))
        return PyErr_Format(PyExc_ValueError, "no stamp of these dicts");
    AddressOf address_of = (AddressOf)PyLong_AsVoidPtr(function);
    if (address_of == NULL)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "no function");
    if (is_written(dicts, PyByteArray_AS_STRING(stamped)))
        return PyLong_FromLong(WRITTEN);
    void **before = (void **)PyBytes_AS_STRING(addresses);
    for (Py_ssize_t i = 0; i < count; i++)
        if (address_of(PyTuple_GET_ITEM(tensors, i)) != before[i])
            return PyLong_FromLong(MOVED);
    return PyLong_FromLong(SAME);
}

static PyMethodDef methods[] = {{"stamp", stamp, METH_VARARGS, NULL},
                                {"compare", compare, METH_VARARGS, NULL},
                                {NULL, NULL, 0, NULL}};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "piecewise_unchanged", NULL, sizeof(Watcher), methods, slots, NULL, NULL,
    give_watcher_back};

PyMODINIT_FUNC PyInit_piecewise_unchanged(void) { return PyModuleDef_Init(&definition); }
