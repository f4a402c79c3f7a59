/* Compares the addresses of many tensors with earlier ones in one call. See addresses.py. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

typedef void *(*AddressOf)(PyObject *);

/* unmoved(address_of: int, tensors: tuple, addresses: bytes) -> bool

   address_of: a function of torch's, as an int. addresses: one pointer for each tensor. */
static PyObject *unmoved(PyObject *module, PyObject *args) {
    PyObject *function, *tensors, *addresses;
    if (!PyArg_ParseTuple(args, "OO!S", &function, &PyTuple_Type, &tensors, &addresses))
        return NULL;
    AddressOf address_of = (AddressOf)PyLong_AsVoidPtr(function);
    if (address_of == NULL)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "no function");
    Py_ssize_t count = PyTuple_GET_SIZE(tensors);
    if (PyBytes_GET_SIZE(addresses) != count * (Py_ssize_t)sizeof(void *))
        return PyErr_Format(PyExc_ValueError, "not one address for each tensor");
    void **before = (void **)PyBytes_AS_STRING(addresses);
    for (Py_ssize_t i = 0; i < count; i++)
        if (address_of(PyTuple_GET_ITEM(tensors, i)) != before[i])
            Py_RETURN_FALSE;
    Py_RETURN_TRUE;
}

static PyMethodDef methods[] = {{"unmoved", unmoved, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "piecewise_addresses", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_piecewise_addresses(void) { return PyModule_Create(&definition); }
