"""One file per raw data set: what its rows look like, and the function that makes a record of one.

A new file here is registered by being here.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
