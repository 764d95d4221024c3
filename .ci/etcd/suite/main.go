// Command suite runs a compiled test program of others against keyspaces, and holds its results against a list of the tests that
// can't apply here.
//
//	go run ./suite -list FILE [-run REGEXP] [-skip REGEXP] [-listed=false] -- PROGRAM [ARGUMENTS]
//
// Results are compared test by test, by the names of those that have no subtests. It exits with 1 if a test fails that isn't listed,
// if a listed one passes, or if a listed one doesn't exist. So nobody can list too much. With -listed=false the listed tests
// aren't run, which is the short form. No test at all is a failure, too. With -playground DIR a playground of the programs in that
// folder runs meanwhile; the tests find it by the variables SHARDKV_ENDPOINTS and SHARDKV_CLI.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"shardkv.dev/ci/etcd/process"
)

func main() {
	var options options
	flag.StringVar(&options.list, "list", "", "the file with the tests that can't apply, with reasons")
	flag.StringVar(&options.run, "run", "", "only these tests")
	flag.StringVar(&options.skip, "skip", "", "not these tests")
	flag.BoolVar(&options.listed, "listed", true, "run the listed tests, too, and fail if one passes")
	flag.StringVar(&options.playground, "playground", "", "the folder of shardkv and shardkv-node, to run a playground")
	flag.StringVar(&options.log, "log", "", "the file for the tests' whole output")
	flag.Parse()
	if options.list == "" || options.log == "" || flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(&options, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "suite:", err)
		os.Exit(1)
	}
}

type options struct {
	list, run, skip, log string
	playground           string
	listed               bool
}

func run(options *options, command []string) error {
	started := time.Now()
	list, err := readList(options.list)
	if err != nil {
		return err
	}
	output, err := os.Create(options.log)
	if err != nil {
		return err
	}
	defer output.Close()
	results := newResults()
	if options.playground != "" {
		playground, err := process.StartPlayground(options.playground)
		if err != nil {
			return err
		}
		defer playground.Stop()
		os.Setenv("SHARDKV_ENDPOINTS", strings.Join(playground.Addresses, ","))
		os.Setenv("SHARDKV_CLI", filepath.Join(options.playground, "shardkv"))
	}
	ended := execute(arguments(options, list, command), output, results)
	if results.count() == 0 {
		return fmt.Errorf("no test ran (%v): see %s", ended, options.log)
	}
	problems := results.judge(list, options)
	if ended != nil && !results.anyFailed() {
		problems = append(problems, fmt.Sprintf("the program failed, and no test did: %v", ended))
	}
	for _, problem := range problems {
		fmt.Fprintln(os.Stderr, "suite:", problem)
	}
	passed, skipped, failed := results.totals()
	fmt.Printf("suite: %d passed, %d failed as listed, %d skip themselves (%.0f s; output in %s)\n",
		passed, failed-len(problems), skipped, time.Since(started).Seconds(), options.log)
	if len(problems) > 0 {
		return fmt.Errorf("%d differences from %s", len(problems), options.list)
	}
	return nil
}

// arguments returns the command with the flags that choose tests.
func arguments(options *options, list list, command []string) []string {
	args := append([]string{"tool", "test2json", "-t", command[0], "-test.v=test2json"}, command[1:]...)
	if options.run != "" {
		args = append(args, "-test.run="+options.run)
	}
	// Go takes the first pattern that matches the beginning of a name, so the exact ones come first.
	if skip := join(list.skip(!options.listed), options.skip); skip != "" {
		args = append(args, "-test.skip="+skip)
	}
	return args
}

// event is a line of `go tool test2json`.
type event struct {
	Action, Test, Output string
	Elapsed              float64
}

// execute runs the tests, writes their output to a file, and collects their results.
func execute(args []string, output io.Writer, results *results) error {
	program := exec.Command("go", args...)
	program.Stderr = output
	events, err := program.StdoutPipe()
	if err != nil {
		return err
	}
	if err := program.Start(); err != nil {
		return err
	}
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return program.Wait()
		}
		var event event
		if json.Unmarshal(line, &event) != nil {
			output.Write(line)
			continue
		}
		io.WriteString(output, event.Output)
		results.add(&event)
	}
}
