package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"

	"github.com/anishathalye/porcupine"
)

// A line of a history. Times are nanoseconds of one monotonic clock.
//
//	{"client":1,"op":"put","key":"k","value":"v","call":10,"return":20,"outcome":"ok"}
//	{"client":2,"op":"get","key":"k","call":12,"return":30,"outcome":"ok","result":"v"}
//
//	op       arguments               result
//	get                              the value, null when there is none
//	put      value
//	append   value                   the length in bytes afterwards (may be left out)
//	delete                           whether the key existed (may be left out)
//	cas      expected, value; null   whether it was swapped
//	         means "no such key"
//
// The outcome is "ok"; "failed" when the operation certainly had no effect, which leaves it out of the
// check; or "unknown" when it may have had one, at any time after its call, for ever: its result and
// return are then ignored.
type line struct {
	Client   int             `json:"client"`
	Op       string          `json:"op"`
	Key      *string         `json:"key"`
	Value    *string         `json:"value"`
	Expected *string         `json:"expected"`
	Call     *int64          `json:"call"`
	Return   *int64          `json:"return"`
	Outcome  string          `json:"outcome"`
	Result   json.RawMessage `json:"result"`
}

type input struct {
	op       string
	key      string
	value    *string
	expected *string
}

// An operation's result. A field that is nil was not observed and constrains nothing.
type output struct {
	known  bool
	value  *string
	length *uint64
	yes    *bool
}

type history struct {
	operations []porcupine.Operation
	byKey      map[string][]porcupine.Operation
	keys       []string
	// The latest call or return of all.
	end     int64
	ok      int
	unknown int
	failed  int
}

func newHistory() *history {
	return &history{byKey: map[string][]porcupine.Operation{}}
}

func (h *history) summary() string {
	return fmt.Sprintf("%d operations on %d keys (%d with an unknown outcome; %d failed ones left out)",
		len(h.operations), len(h.keys), h.unknown, h.failed)
}

func (h *history) read(name string, from io.Reader) error {
	return eachLine(name, from, h.add)
}

// readExport adds a read of every key of the history, after all its operations, by what an export says.
func (h *history) readExport(name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	exported := map[string]string{}
	err = eachLine(name, file, func(text []byte) error {
		var pair struct{ Key, Value *string }
		if err := json.Unmarshal(text, &pair); err != nil {
			return err
		}
		if pair.Key == nil || pair.Value == nil {
			return fmt.Errorf("key and value are needed, as text")
		}
		exported[*pair.Key] = *pair.Value
		return nil
	})
	if err != nil {
		return err
	}
	for _, key := range h.keys {
		out := output{known: true}
		if value, found := exported[key]; found {
			out.value = &value
		}
		operation := porcupine.Operation{
			ClientId: -1,
			Input:    input{op: "get", key: key},
			Call:     h.end + 1,
			Output:   out,
			Return:   h.end + 2,
		}
		h.byKey[key] = append(h.byKey[key], operation)
		h.operations = append(h.operations, operation)
	}
	return nil
}

func eachLine(name string, from io.Reader, use func([]byte) error) error {
	scanner := bufio.NewScanner(from)
	scanner.Buffer(make([]byte, 64<<10), 64<<20)
	for number := 1; scanner.Scan(); number++ {
		text := bytes.TrimSpace(scanner.Bytes())
		if len(text) == 0 {
			continue
		}
		if err := use(text); err != nil {
			return fmt.Errorf("%s, line %d: %w", name, number, err)
		}
	}
	if err := scanner.Err(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (h *history) add(text []byte) error {
	var l line
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&l); err != nil {
		return err
	}
	if l.Key == nil || l.Call == nil {
		return fmt.Errorf("key and call are needed")
	}
	in := input{op: l.Op, key: *l.Key, value: l.Value, expected: l.Expected}
	switch l.Op {
	case "put", "append":
		if l.Value == nil {
			return fmt.Errorf("%s needs a value", l.Op)
		}
	case "get", "delete", "cas":
	default:
		return fmt.Errorf("unknown op %q", l.Op)
	}
	operation := porcupine.Operation{ClientId: l.Client, Input: in, Call: *l.Call}
	switch l.Outcome {
	case "failed":
		h.failed++
		return nil
	case "unknown":
		h.unknown++
		// It may take effect at any time from now on.
		operation.Return = math.MaxInt64
		operation.Output = output{}
	case "ok":
		h.ok++
		if l.Return == nil || *l.Return < *l.Call {
			return fmt.Errorf("an ok operation returns at or after its call")
		}
		out, err := l.output()
		if err != nil {
			return err
		}
		operation.Return = *l.Return
		operation.Output = out
	default:
		return fmt.Errorf("unknown outcome %q", l.Outcome)
	}
	if _, seen := h.byKey[in.key]; !seen {
		h.keys = append(h.keys, in.key)
	}
	h.end = max(h.end, operation.Call)
	if l.Outcome == "ok" {
		h.end = max(h.end, operation.Return)
	}
	h.byKey[in.key] = append(h.byKey[in.key], operation)
	h.operations = append(h.operations, operation)
	return nil
}

func (l *line) output() (output, error) {
	out := output{known: true}
	given := len(l.Result) > 0 && !bytes.Equal(l.Result, []byte("null"))
	var err error
	switch {
	case l.Op == "get":
		if given {
			out.value = new(string)
			err = json.Unmarshal(l.Result, out.value)
		}
	case l.Op == "append" && given:
		out.length = new(uint64)
		err = json.Unmarshal(l.Result, out.length)
	case l.Op == "delete" && given:
		out.yes = new(bool)
		err = json.Unmarshal(l.Result, out.yes)
	case l.Op == "cas":
		if !given {
			return out, fmt.Errorf("an ok cas needs its result")
		}
		out.yes = new(bool)
		err = json.Unmarshal(l.Result, out.yes)
	}
	if err != nil {
		return out, fmt.Errorf("result of %s: %w", l.Op, err)
	}
	return out, nil
}
