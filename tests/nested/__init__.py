"""Nested tests: guests inside Gearshift inside an emulated machine. `cases.ALL` lists them; scripts/test runs them."""
