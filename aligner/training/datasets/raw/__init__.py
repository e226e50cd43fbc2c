"""One file per raw data set: what its rows look like, and the function that makes a record of one."""
