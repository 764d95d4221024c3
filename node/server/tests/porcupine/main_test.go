package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func runOn(t *testing.T, text string, timeout time.Duration) (int, string) {
	t.Helper()
	var out bytes.Buffer
	code := run(nil, strings.NewReader(text), &out, &out, limits{timeout: timeout, atLeast: 1})
	return code, out.String()
}

func TestVerdicts(t *testing.T) {
	cases := []struct {
		name, history string
		code          int
	}{
		{"a read after a write sees it", `
			{"client":1,"op":"put","key":"k","value":"a","call":1,"return":2,"outcome":"ok"}
			{"client":2,"op":"get","key":"k","call":3,"return":4,"outcome":"ok","result":"a"}`, exitLinearizable},
		{"a read of an absent key", `
			{"client":2,"op":"get","key":"k","call":3,"return":4,"outcome":"ok","result":null}`, exitLinearizable},
		{"an empty value is not an absent key", `
			{"client":1,"op":"put","key":"k","value":"","call":1,"return":2,"outcome":"ok"}
			{"client":2,"op":"get","key":"k","call":3,"return":4,"outcome":"ok","result":null}`, exitIllegal},
		{"a stale read", `
			{"client":1,"op":"put","key":"k","value":"a","call":1,"return":2,"outcome":"ok"}
			{"client":1,"op":"put","key":"k","value":"b","call":3,"return":4,"outcome":"ok"}
			{"client":2,"op":"get","key":"k","call":5,"return":6,"outcome":"ok","result":"a"}`, exitIllegal},
		{"an acknowledged write is lost", `
			{"client":1,"op":"put","key":"k","value":"a","call":1,"return":2,"outcome":"ok"}
			{"client":2,"op":"get","key":"k","call":5,"return":6,"outcome":"ok"}`, exitIllegal},
		{"an append is applied twice", `
			{"client":1,"op":"append","key":"k","value":"x","call":1,"return":2,"outcome":"ok"}
			{"client":2,"op":"get","key":"k","call":5,"return":6,"outcome":"ok","result":"xx"}`, exitIllegal},
		{"an append tells a wrong length", `
			{"client":1,"op":"append","key":"k","value":"x","call":1,"return":2,"outcome":"ok","result":2}`, exitIllegal},
		{"two swaps from the same value", `
			{"client":1,"op":"cas","key":"k","expected":null,"value":"a","call":1,"return":9,"outcome":"ok","result":true}
			{"client":2,"op":"cas","key":"k","expected":null,"value":"b","call":1,"return":9,"outcome":"ok","result":true}`, exitIllegal},
		{"one of two swaps wins", `
			{"client":1,"op":"cas","key":"k","expected":null,"value":"a","call":1,"return":9,"outcome":"ok","result":true}
			{"client":2,"op":"cas","key":"k","expected":null,"value":"b","call":1,"return":9,"outcome":"ok","result":false}
			{"client":3,"op":"cas","key":"k","expected":"a","value":null,"call":10,"return":11,"outcome":"ok","result":true}
			{"client":3,"op":"get","key":"k","call":12,"return":13,"outcome":"ok"}`, exitLinearizable},
		{"a delete of nothing", `
			{"client":1,"op":"delete","key":"k","call":1,"return":2,"outcome":"ok","result":true}`, exitIllegal},
		{"an unknown write may take effect late", `
			{"client":1,"op":"put","key":"k","value":"a","call":1,"return":2,"outcome":"unknown"}
			{"client":2,"op":"get","key":"k","call":3,"return":4,"outcome":"ok","result":null}
			{"client":2,"op":"get","key":"k","call":5,"return":6,"outcome":"ok","result":"a"}`, exitLinearizable},
		{"but not come and go", `
			{"client":1,"op":"put","key":"k","value":"a","call":1,"return":null,"outcome":"unknown"}
			{"client":2,"op":"get","key":"k","call":3,"return":4,"outcome":"ok","result":"a"}
			{"client":2,"op":"get","key":"k","call":5,"return":6,"outcome":"ok","result":null}`, exitIllegal},
		{"nor before it was called", `
			{"client":1,"op":"put","key":"k","value":"a","call":5,"return":null,"outcome":"unknown"}
			{"client":2,"op":"get","key":"k","call":3,"return":4,"outcome":"ok","result":"a"}`, exitIllegal},
		{"a failed write has no effect", `
			{"client":1,"op":"put","key":"k","value":"a","call":1,"return":2,"outcome":"failed"}
			{"client":2,"op":"get","key":"k","call":5,"return":6,"outcome":"ok","result":"a"}`, exitIllegal},
		{"keys are independent", `
			{"client":1,"op":"put","key":"k","value":"a","call":1,"return":2,"outcome":"ok"}
			{"client":2,"op":"get","key":"l","call":3,"return":4,"outcome":"ok","result":"a"}`, exitIllegal},
		{"nothing at all", ``, exitUnreadable},
		{"only failures", `
			{"client":1,"op":"put","key":"k","value":"a","call":1,"return":2,"outcome":"failed"}`, exitUnreadable},
		{"not JSON", `put k a`, exitUnreadable},
		{"an unknown op", `{"client":1,"op":"touch","key":"k","call":1,"return":2,"outcome":"ok"}`, exitUnreadable},
		{"an unknown outcome", `{"client":1,"op":"get","key":"k","call":1,"return":2,"outcome":"maybe"}`, exitUnreadable},
		{"an unknown field", `{"client":1,"op":"get","key":"k","call":1,"return":2,"outcome":"ok","ttl":1}`, exitUnreadable},
		{"a return before its call", `{"client":1,"op":"get","key":"k","call":3,"return":2,"outcome":"ok"}`, exitUnreadable},
		{"no key", `{"client":1,"op":"get","call":1,"return":2,"outcome":"ok"}`, exitUnreadable},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			code, out := runOn(t, c.history, time.Minute)
			if code != c.code {
				t.Fatalf("exit code %d, not %d: %s", code, c.code, out)
			}
		})
	}
}

// The search is exponential in operations that overlap: here 200 appends that are all open, and a read that
// no order of them explains. Giving up must not look like success.
func TestUndecidedIsAFailure(t *testing.T) {
	var history strings.Builder
	for n := range 200 {
		fmt.Fprintf(&history, `{"client":%d,"op":"append","key":"k","value":"%03d,","call":1,"return":null,"outcome":"unknown"}`+"\n", n, n)
	}
	want := strings.Repeat("000,", 100)
	fmt.Fprintf(&history, `{"client":999,"op":"get","key":"k","call":2,"return":3,"outcome":"ok","result":%q}`+"\n", want)
	code, out := runOn(t, history.String(), 50*time.Millisecond)
	if code != exitUndecided || !strings.Contains(out, "UNDECIDED") {
		t.Fatalf("exit code %d: %s", code, out)
	}
}

func TestAnExportIsReadAfterEverything(t *testing.T) {
	history := `
		{"client":1,"op":"put","key":"k","value":"a","call":1,"return":2,"outcome":"ok"}
		{"client":1,"op":"put","key":"l","value":"b","call":3,"return":null,"outcome":"unknown"}`
	for export, want := range map[string]int{
		`{"key":"k","value":"a"}`:                                    exitLinearizable,
		`{"key":"k","value":"a"}` + "\n" + `{"key":"l","value":"b"}`: exitLinearizable,
		`{"key":"k","value":"a"}` + "\n" + `{"key":"l","value":"c"}`: exitIllegal,
		`{"key":"l","value":"b"}`:                                    exitIllegal,
		``:                                                           exitIllegal,
		`{"key":"k","value_hex":"00ff"}`:                             exitUnreadable,
	} {
		file := filepath.Join(t.TempDir(), "export.jsonl")
		if err := os.WriteFile(file, []byte(export), 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		limits := limits{timeout: time.Minute, atLeast: 1, then: file}
		if code := run(nil, strings.NewReader(history), &out, &out, limits); code != want {
			t.Errorf("%s: exit code %d, not %d: %s", export, code, want, out.String())
		}
	}
}

func TestAnIllegalKeyIsShown(t *testing.T) {
	code, out := runOn(t, `
		{"client":1,"op":"put","key":"k","value":"a","call":1000000,"return":2000000,"outcome":"ok"}
		{"client":7,"op":"get","key":"k","call":3000000,"return":4000000,"outcome":"ok","result":"b"}`, time.Minute)
	if code != exitIllegal || !strings.Contains(out, `client 7  get() -> "b"`) {
		t.Fatalf("exit code %d: %s", code, out)
	}
}
