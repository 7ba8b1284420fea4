"""Pictures of results: functions that return a ``plotly`` figure and show nothing."""
