"""Who consumed the joules: pure arithmetic, without I/O, clock, threads or OpenTelemetry."""
