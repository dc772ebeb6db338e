"""Files, schedules and data order of the upstream programs, to convert and to compare."""
