package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// resultsOf makes results from lines with an action and a test.
func resultsOf(lines ...string) *results {
	results := newResults()
	for _, line := range lines {
		action, name, _ := strings.Cut(line, " ")
		results.add(&event{Action: "run", Test: name})
		results.add(&event{Action: action, Test: name})
	}
	return results
}

func TestJudge(t *testing.T) {
	listed := list{"TestA/listed": "why", "TestGone": "why", "TestNever": notRun + "it panics"}
	for _, test := range []struct {
		name    string
		results *results
		options options
		want    []string
	}{
		{"as listed", resultsOf("fail TestA", "fail TestA/listed", "pass TestA/other", "fail TestGone", "skip TestB"), options{listed: true}, nil},
		{"unlisted", resultsOf("fail TestA", "fail TestA/other"), options{}, []string{"TestA/other failed, and isn't listed"}},
		{"mended", resultsOf("pass TestA", "pass TestA/listed"), options{}, []string{"TestA/listed is listed, and passes: take it off the list"}},
		{"gone", resultsOf("fail TestA/listed"), options{listed: true}, []string{"TestGone is listed, and there is no such test"}},
		{"above subtests", resultsOf("fail TestB", "pass TestB/part"), options{}, []string{"TestB failed outside of its subtests"}},
		{"without an end", func() *results {
			results := newResults()
			results.add(&event{Action: "run", Test: "TestStopped"})
			return results
		}(), options{}, []string{"TestStopped failed, and isn't listed"}},
	} {
		if got := test.results.judge(listed, &test.options); !slices.Equal(got, test.want) {
			t.Errorf("%s: %q", test.name, got)
		}
	}
}

func TestReadList(t *testing.T) {
	file := filepath.Join(t.TempDir(), "list")
	read := func(text string) (list, error) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return readList(file)
	}
	names, err := read("# Head.\n\n# Not run: first\n# line.\nTestA/b_c\nTestB\n\n# Second.\nTestC\n")
	if err != nil || len(names) != 3 || names["TestB"] != "Not run: first line." || names["TestC"] != "Second." {
		t.Fatalf("%v %v", names, err)
	}
	if skip := names.skip(false); skip != "^TestA$/^b_c$|^TestB$" {
		t.Errorf("skips %s", skip)
	}
	if skip := names.skip(true); skip != "^TestA$/^b_c$|^TestB$|^TestC$" {
		t.Errorf("skips %s", skip)
	}
	for _, bad := range []string{"TestA\n", "# Why.\n\nTestA\n", "# Why.\nTestA\nTestA\n"} {
		if names, err := read(bad); err == nil {
			t.Errorf("%q is read as %v", bad, names)
		}
	}
}
