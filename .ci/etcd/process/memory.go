package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Memory returns the resident memory of the server's processes, and of those that they have started, in bytes.
func (s *Server) Memory() (int64, error) {
	children, memory, err := processes()
	if err != nil {
		return 0, err
	}
	var sum int64
	todo := append([]int(nil), s.pids...)
	for len(todo) > 0 {
		pid := todo[0]
		todo = append(todo[1:], children[pid]...)
		sum += memory[pid]
	}
	if sum == 0 {
		return 0, fmt.Errorf("no process of the server runs: %v", s.pids)
	}
	return sum, nil
}

// processes returns the children and the resident bytes of each process.
func processes() (map[int][]int, map[int]int64, error) {
	files, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		return nil, nil, err
	}
	children, memory := map[int][]int{}, map[int]int64{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			// It has ended meanwhile.
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return nil, nil, err
		}
		for line := range strings.Lines(string(text)) {
			words := strings.Fields(line)
			if len(words) < 2 {
				continue
			}
			value, err := strconv.Atoi(words[1])
			switch {
			case words[0] == "PPid:" && err == nil:
				children[value] = append(children[value], pid)
			case words[0] == "VmRSS:" && err == nil:
				memory[pid] = int64(value) << 10
			}
		}
	}
	return children, memory, nil
}
