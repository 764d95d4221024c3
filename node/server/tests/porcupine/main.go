// Shardkv-porcupine decides whether a recorded history of operations is linearizable.
//
// It is the independent checker of the process tests: it shares no code with the store, and the decision is
// porcupine's. It reads JSON Lines, one operation a line (see history.go), from the files that are named, or
// from standard input. Keys are independent, so each key is checked by itself.
//
// Exit codes: 0 linearizable, 1 not linearizable, 2 undecided within the time, 3 the input is unreadable.
// Undecided counts as failure: a check that gave up has shown nothing.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"time"
)

const (
	exitLinearizable = 0
	exitIllegal      = 1
	exitUndecided    = 2
	exitUnreadable   = 3
)

func main() {
	timeout := flag.Duration("timeout", 60*time.Second, "give up after this long, for all keys together")
	atLeast := flag.Int("at-least", 1, "refuse a history with fewer operations: an empty one proves nothing")
	then := flag.String("then", "", "an export (JSON Lines of key and value) that was made after everything: every key of\nthe history is read in it, so that a lost write shows")
	picture := flag.String("visualize", "", "write an HTML picture of the first illegal key to this file")
	flag.Usage = func() {
		fmt.Fprintf(os.Stderr, "usage: shardkv-porcupine [options] [history.jsonl ...]\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	os.Exit(run(flag.Args(), os.Stdin, os.Stdout, os.Stderr, limits{*timeout, *atLeast, *then, *picture}))
}

type limits struct {
	timeout time.Duration
	atLeast int
	then    string
	picture string
}

func run(files []string, in io.Reader, out, errs io.Writer, limits limits) int {
	history, err := readAll(files, in)
	if err == nil && limits.then != "" {
		err = history.readExport(limits.then)
	}
	if err != nil {
		fmt.Fprintf(errs, "unreadable: %v\n", err)
		return exitUnreadable
	}
	if len(history.operations) < limits.atLeast {
		fmt.Fprintf(errs, "unreadable: %d operations, but at least %d were expected\n", len(history.operations), limits.atLeast)
		return exitUnreadable
	}
	verdict := check(history, limits.timeout)
	fmt.Fprintf(out, "%s: %s\n", verdict, history.summary())
	switch verdict.kind {
	case linearizable:
		return exitLinearizable
	case undecided:
		return exitUndecided
	}
	fmt.Fprintf(out, "the operations of key %q, by the time they were called:\n", verdict.key)
	describe(out, history.byKey[verdict.key])
	if limits.picture != "" {
		if err := draw(history.byKey[verdict.key], limits.picture); err != nil {
			fmt.Fprintf(errs, "no picture: %v\n", err)
		}
	}
	return exitIllegal
}

func readAll(files []string, in io.Reader) (*history, error) {
	history := newHistory()
	if len(files) == 0 {
		return history, history.read("standard input", in)
	}
	for _, name := range files {
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		err = history.read(name, file)
		file.Close()
		if err != nil {
			return nil, err
		}
	}
	return history, nil
}
