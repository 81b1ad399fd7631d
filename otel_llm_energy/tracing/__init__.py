"""How joules reach the span: hold an ended span, settle its claim, enrich a copy, hand it on."""
