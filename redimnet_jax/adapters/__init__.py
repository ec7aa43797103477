"""Models and calibrations behind the interfaces of other libraries; each file is for one."""
