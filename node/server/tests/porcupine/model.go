package main

import (
	"fmt"
	"io"
	"os"
	"sort"
	"strconv"
	"time"

	"github.com/anishathalye/porcupine"
)

// One key of the store: a value, or none.
type register struct {
	exists bool
	value  string
}

func (r register) equals(want *string) bool {
	if want == nil {
		return !r.exists
	}
	return r.exists && r.value == *want
}

func holding(value string) register { return register{exists: true, value: value} }

// step returns whether an operation may answer `out` in `state`, and the state afterwards. An operation
// whose outcome is unknown may have answered anything.
func step(state register, in input, out output) (bool, register) {
	switch in.op {
	case "get":
		return !out.known || state.equals(out.value), state
	case "put":
		return true, holding(*in.value)
	case "append":
		next := holding(state.value + *in.value)
		return out.length == nil || *out.length == uint64(len(next.value)), next
	case "delete":
		return out.yes == nil || *out.yes == state.exists, register{}
	case "cas":
		swaps := state.equals(in.expected)
		next := state
		if swaps && in.value != nil {
			next = holding(*in.value)
		} else if swaps {
			next = register{}
		}
		return out.yes == nil || *out.yes == swaps, next
	}
	return false, state
}

var model = porcupine.Model{
	Init: func() interface{} { return register{} },
	Step: func(state, in, out interface{}) (bool, interface{}) {
		return step(state.(register), in.(input), out.(output))
	},
	DescribeOperation: func(in, out interface{}) string {
		return in.(input).String() + " -> " + out.(output).String()
	},
}

type kind int

const (
	linearizable kind = iota
	illegal
	undecided
)

type verdict struct {
	kind kind
	key  string
}

func (v verdict) String() string {
	switch v.kind {
	case linearizable:
		return "linearizable"
	case illegal:
		return fmt.Sprintf("NOT LINEARIZABLE (key %q)", v.key)
	}
	return fmt.Sprintf("UNDECIDED (key %q): the time was too short, which counts as failure", v.key)
}

// check checks key by key, in the order in which the keys first appear, within `timeout` for all. An
// illegal key wins over an undecided one.
func check(history *history, timeout time.Duration) verdict {
	deadline := time.Now().Add(timeout)
	result := verdict{kind: linearizable}
	for _, key := range history.keys {
		// Zero would mean "no limit" to porcupine.
		left := max(time.Until(deadline), time.Millisecond)
		switch porcupine.CheckOperationsTimeout(model, history.byKey[key], left) {
		case porcupine.Illegal:
			return verdict{illegal, key}
		case porcupine.Unknown:
			if result.kind == linearizable {
				result = verdict{undecided, key}
			}
		}
	}
	return result
}

func (in input) String() string {
	switch in.op {
	case "put", "append":
		return fmt.Sprintf("%s(%s)", in.op, quote(in.value))
	case "cas":
		return fmt.Sprintf("cas(%s => %s)", quote(in.expected), quote(in.value))
	}
	return in.op + "()"
}

func (out output) String() string {
	switch {
	case !out.known:
		return "?"
	case out.yes != nil:
		return strconv.FormatBool(*out.yes)
	case out.length != nil:
		return fmt.Sprintf("%d bytes", *out.length)
	}
	return quote(out.value)
}

func quote(text *string) string {
	if text == nil {
		return "none"
	}
	return strconv.Quote(*text)
}

// describe prints a key's operations as text, at most the first thousand.
func describe(out io.Writer, operations []porcupine.Operation) {
	sorted := append([]porcupine.Operation(nil), operations...)
	sort.SliceStable(sorted, func(a, b int) bool { return sorted[a].Call < sorted[b].Call })
	for number, operation := range sorted {
		if number == 1000 {
			fmt.Fprintf(out, "  ... and %d more\n", len(sorted)-number)
			return
		}
		end := "      open"
		if operation.Output.(output).known {
			end = fmt.Sprintf("%10.3f", float64(operation.Return)/1e6)
		}
		fmt.Fprintf(out, "  %10.3f ms .. %s ms  client %d  %s\n", float64(operation.Call)/1e6, end,
			operation.ClientId, model.DescribeOperation(operation.Input, operation.Output))
	}
}

func draw(operations []porcupine.Operation, path string) error {
	_, info := porcupine.CheckOperationsVerbose(model, operations, 10*time.Second)
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return porcupine.Visualize(model, info, file)
}
