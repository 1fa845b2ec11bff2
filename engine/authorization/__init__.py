"""Authorization requests: what people are asked to consent to, and how their answers wake the runs that wait."""
