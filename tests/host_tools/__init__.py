"""Tests of the host tools in scripts/gearshift_host; scripts/test runs them as the stage `tools`."""
